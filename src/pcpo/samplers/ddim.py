"""DDIM with noise (2010.02502 eq. 12 and 16), and PCPO's variance schedule for it (2509.25774)."""

from __future__ import annotations

import torch
from torch import Tensor

from pcpo.errors import ConfigError
from pcpo.samplers.coefficients import Coefficients, diffusion_alphas
from pcpo.types import Grid


def ddim(grid: Grid, eta: float) -> Coefficients:
    """eta 0 is deterministic, eta 1 has DDPM's posterior variance. The prediction is eps.

    s = eta sqrt((1 - ab_p) / (1 - ab_t) (1 - ab_t / ab_p))
    """
    ab_t, ab_p = diffusion_alphas(grid)
    std = eta * torch.sqrt((1 - ab_p) / (1 - ab_t) * (1 - ab_t / ab_p))
    return _coefficients(ab_t, ab_p, std)


def ddim_pcpo(grid: Grid, target: float) -> Coefficients:
    """The DDIM step with the variance schedule of PCPO's authors: s' = `pcpo_std`."""
    ab_t, ab_p = diffusion_alphas(grid)
    return _coefficients(ab_t, ab_p, pcpo_std(ab_t, ab_p, target))


def pcpo_std(ab_t: Tensor, ab_p: Tensor, target: float) -> Tensor:
    """s' = [w c1 + sqrt((1 + w^2)(1 - ab_p) - c1^2)] / (1 + w^2), w = target; [T] (2509.25774, w = 4.5).

    This root solves (c1 + c2) / s' = w, not (c1 - c2) / s' = w: the native weight k / s' stays uneven (0.385
    to 3.37 on SD1.5's 50 steps), so the constant loss weight that goes with it is what equalises the credit.
    Raises ConfigError where no such variance exists, as for very few steps.
    """
    c1 = _c1(ab_t, ab_p)
    root = (1 + target**2) * (1 - ab_p) - c1**2
    std = (target * c1 + root.clamp(min=0).sqrt()) / (1 + target**2)
    bad = (root < 0) | (std**2 > 1 - ab_p)
    if bad.any():
        raise ConfigError(
            f"no variance gives weight {target} at step {int(bad.nonzero()[0])}",
            where="sampler.variance",
            fix="use more steps, or another way to apply the credit",
        )
    return std


def _c1(ab_t: Tensor, ab_p: Tensor) -> Tensor:
    return torch.sqrt(1 - ab_t) / torch.sqrt(ab_t / ab_p)


def _coefficients(ab_t: Tensor, ab_p: Tensor, std: Tensor) -> Coefficients:
    # mean = sqrt(ab_p) x0hat + c2 eps with x0hat = (x - sqrt(1 - ab_t) eps) / sqrt(ab_t). eta = 1 makes
    # 1 - ab_p - s^2 vanish at a last step that ends in the clean picture: rounding must not make it negative.
    c2 = torch.sqrt((1 - ab_p - std**2).clamp(min=0))
    return Coefficients(torch.sqrt(ab_p / ab_t), _c1(ab_t, ab_p) - c2, std)
