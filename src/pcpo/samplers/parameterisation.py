"""From what a backbone predicts to what a sampler takes (diffusion: eps, flow: v), each with its inverse.

diffusion  x_t = sqrt(ab) x0 + sqrt(1 - ab) eps,  v = sqrt(ab) eps - sqrt(1 - ab) x0   (2202.00512)
flow       x_t = (1 - t) x0 + t eps,              v = eps - x0                          (2210.02747)

Tensors are [N, ...]; alpha_bar and t are [N], or broadcastable to the tensors.
"""

from __future__ import annotations

from torch import Tensor

from pcpo.errors import ConfigError


def _rows(values: Tensor, like: Tensor) -> Tensor:
    if values.ndim == 1:
        values = values.reshape(-1, *[1] * (like.ndim - 1))
    return values.to(like.dtype).to(like.device)


def _alpha_sigma(alpha_bar: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    # the square roots are taken before the cast, so 1 - alpha_bar keeps its digits
    return _rows(alpha_bar.sqrt(), like), _rows((1 - alpha_bar).sqrt(), like)


def diffusion_x0_from_eps(eps: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
    """x0 = (x_t - sqrt(1 - ab) eps) / sqrt(ab)."""
    alpha, sigma = _alpha_sigma(alpha_bar, x_t)
    return (x_t - sigma * eps) / alpha


def diffusion_eps_from_x0(x0: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
    """eps = (x_t - sqrt(ab) x0) / sqrt(1 - ab)."""
    alpha, sigma = _alpha_sigma(alpha_bar, x_t)
    return (x_t - alpha * x0) / sigma


def diffusion_eps_from_v(v: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
    """eps = sqrt(ab) v + sqrt(1 - ab) x_t."""
    alpha, sigma = _alpha_sigma(alpha_bar, x_t)
    return alpha * v + sigma * x_t


def diffusion_v_from_eps(eps: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
    """v = (eps - sqrt(1 - ab) x_t) / sqrt(ab)."""
    alpha, sigma = _alpha_sigma(alpha_bar, x_t)
    return (eps - sigma * x_t) / alpha


def diffusion_x0_from_v(v: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
    """x0 = sqrt(ab) x_t - sqrt(1 - ab) v."""
    alpha, sigma = _alpha_sigma(alpha_bar, x_t)
    return alpha * x_t - sigma * v


def diffusion_v_from_x0(x0: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
    """v = (sqrt(ab) x_t - x0) / sqrt(1 - ab)."""
    alpha, sigma = _alpha_sigma(alpha_bar, x_t)
    return (alpha * x_t - x0) / sigma


def diffusion_eps(prediction: Tensor, x_t: Tensor, alpha_bar: Tensor, prediction_type: str) -> Tensor:
    """eps for diffusers' prediction_type: epsilon, v_prediction or sample. Raises ConfigError for another."""
    if prediction_type == "epsilon":
        return prediction
    if prediction_type == "v_prediction":
        return diffusion_eps_from_v(prediction, x_t, alpha_bar)
    if prediction_type == "sample":
        return diffusion_eps_from_x0(prediction, x_t, alpha_bar)
    raise ConfigError(
        f"unknown prediction type '{prediction_type}'",
        where="scheduler",
        fix="use epsilon, v_prediction or sample",
    )


def flow_x0_from_v(v: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """x0 = x_t - t v."""
    return x_t - _rows(t, x_t) * v


def flow_v_from_x0(x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """v = (x_t - x0) / t, for t > 0."""
    return (x_t - x0) / _rows(t, x_t)


def flow_eps_from_v(v: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """eps = x_t + (1 - t) v."""
    return x_t + _rows(1 - t, x_t) * v


def flow_v_from_eps(eps: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """v = (eps - x_t) / (1 - t), for t < 1."""
    return (eps - x_t) / _rows(1 - t, x_t)


def flow_x0_from_eps(eps: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """x0 = (x_t - t eps) / (1 - t), for t < 1."""
    return (x_t - _rows(t, x_t) * eps) / _rows(1 - t, x_t)


def flow_eps_from_x0(x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """eps = (x_t - (1 - t) x0) / t, for t > 0."""
    return (x_t - _rows(1 - t, x_t) * x0) / _rows(t, x_t)
