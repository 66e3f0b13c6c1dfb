"""The log importance ratio of a step, from prediction differences and not log-probs: exactly 0 at first."""

from __future__ import annotations

from torch import Tensor

from pcpo.samplers.base import per_row, reduce_latent


def log_ratio(diff: Tensor, noise: Tensor, weight: Tensor, *, reduce: str = "mean", quadratic: bool = True) -> Tensor:
    """log rho = -reduce(w d.z + 1/2 w^2 d^2) of N pairs, [N].

    diff = f_theta - f_old and noise z [N, ...]; weight w [N]. With the native w = k / s this is the exact log
    importance ratio of the Gaussian step; with PCPO's target for w it is -m of the matching form
    (2509.25774). quadratic=False leaves the second-order term out.
    """
    wd = per_row(weight, diff) * diff
    m = wd * noise
    if quadratic:
        m = m + 0.5 * wd**2
    return -reduce_latent(m, reduce)
