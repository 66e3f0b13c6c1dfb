"""Would deterministic steps of second order, outside the window of stochastic ones, be worth having?

    python benchmarks/solvers.py --threads 1            # writes benchmarks/results/solvers.json

The second order extrapolates what the network predicts from its last two values; it starts anew after a stochastic
step:

    f + r/2 (f - f_before),    r = this step over the one before

with f the velocity and steps in t for flow (Adams-Bashforth), f the clean picture and steps in log SNR for diffusion
(DPM-Solver++ 2M, 2211.01095). Where r is above `LIMIT` the step is of first order. The error is the distance of the
final latents to those of the same run with every deterministic step cut into 8, over their norm.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pcpo.models.base import Adapter
from pcpo.models.loading import load_adapter
from pcpo.samplers import make_sampler
from pcpo.samplers.noise import INITIAL, noise_batch
from pcpo.samplers.parameterisation import diffusion_eps_from_x0, diffusion_x0_from_eps
from pcpo.types import Grid
from timing import RESULTS, header, write

PROMPTS = ["red apple", "blue car", "cat face", "pizza"]
LIMIT, PARTS = 2.0, 8
CASES = {
    "emoji-sd": [(10, "scheduler"), (20, "scheduler"), (20, "log_snr")],
    "emoji-sd3": [(10, "scheduler"), (20, "scheduler")],
}
GUIDANCE = {"emoji-sd": 5.0, "emoji-sd3": 4.5}
Predict = Callable[[Tensor, Tensor], Tensor]


def clock(grid: Grid) -> Tensor:
    """What the second order takes for time at the grid points [T + 1]: it rises."""
    return -grid.times if grid.alpha_bar is None else torch.logit(grid.alpha_bar) / 2


def refine(grid: Grid, parts: int, alphas_cumprod: Tensor | None = None) -> Grid:
    """Every step cut into equal parts: in t, or in log SNR, where a timestep is read from the noise schedule."""
    if parts == 1:
        return grid
    points = clock(grid)
    fraction = torch.arange(parts) / parts
    cut = torch.cat([(points[:-1, None] + points.diff()[:, None] * fraction).flatten(), points[-1:]])
    if alphas_cumprod is None:
        return Grid("flow", -cut[:-1] * 1000, -cut)
    known = torch.logit(alphas_cumprod.double()) / 2
    left = (torch.searchsorted(-known, -cut, right=True) - 1).clamp(0, len(known) - 2)
    at = left + (known[left] - cut) / (known[left] - known[left + 1])
    return Grid("diffusion", at[:-1], at / len(known), torch.sigmoid(2 * cut))


@torch.no_grad()
def solve(
    predict: Predict,
    grid: Grid,
    x: Tensor,
    order: int,
    *,
    noise: dict[int, Tensor] | None = None,
    fine: Grid | None = None,
    limit: float = LIMIT,
) -> Tensor:
    """Final latents from x [B, ...]; steps in `noise` are stochastic, others are those of `fine` (None: of the grid).

    predict(x, timestep []) -> the network's output.
    """
    noise, fine = noise or {}, fine or grid
    parts = fine.num_steps // grid.num_steps
    ode = make_sampler("ode")
    own, still = make_sampler("flow_sde" if grid.kind == "flow" else "ddim"), ode.stats(fine)
    points, before = clock(fine), None
    for i, drawn in _steps(grid, noise, parts):
        if drawn is not None:
            x, before = own.step(predict(x, grid.timesteps[i]), x, i, own.stats(grid), noise=drawn).x_next, None
            continue
        out = predict(x, fine.timesteps[i])
        ab = None if fine.alpha_bar is None else fine.alpha_bar[i].expand(len(x))
        value = out if ab is None else diffusion_x0_from_eps(out, x, ab)
        longer = (points[i + 1] - points[i]) / (points[i] - points[i - 1]) if before is not None else math.inf
        if order == 2 and before is not None and longer <= limit:
            ahead = value + longer / 2 * (value - before)
            out = ahead if ab is None else diffusion_eps_from_x0(ahead, x, ab)
        x, before = ode.step(out, x, i, still, noise=torch.zeros_like(x)).x_next, value
    return x


def _steps(grid: Grid, noise: dict[int, Tensor], parts: int) -> Iterator[tuple[int, Tensor | None]]:
    """Stochastic steps with their noise, by the coarse grid; deterministic ones by the fine grid."""
    for step in range(grid.num_steps):
        if step in noise:
            yield step, noise[step]
        else:
            yield from ((part, None) for part in range(step * parts, (step + 1) * parts))


def measure(model: str, steps: int, kind: str) -> list[dict[str, Any]]:
    """Errors of both orders: no stochastic step, a window that comes first, one that comes second."""
    adapter: Adapter = load_adapter(model)
    cond, index = adapter.encode(PROMPTS), torch.arange(len(PROMPTS))
    grid = adapter.grid(steps, kind=kind)
    fine = refine(grid, PARTS, adapter.pipe.scheduler.alphas_cumprod if grid.kind == "diffusion" else None)

    def drawn(step: int) -> Tensor:
        return noise_batch(0, PROMPTS, range(len(PROMPTS)), step, adapter.latent_shape).double()

    def predict(x: Tensor, timestep: Tensor) -> Tensor:
        time = timestep.float().expand(len(x))
        return adapter.predict(x.float(), time, cond, index, GUIDANCE[model]).double()

    found, length = [], steps // 4
    for start in (None, 0, length):
        noise = {} if start is None else {step: drawn(step) for step in range(start, start + length)}
        exact = solve(predict, grid, drawn(INITIAL), 2, noise=noise, fine=fine)
        errors = [solve(predict, grid, drawn(INITIAL), order, noise=noise) - exact for order in (1, 2)]
        first, second = (
            float((error.flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)).mean()) for error in errors
        )
        found.append({"steps": steps, "grid": kind, "window": sorted(noise), "first": first, "second": second})
        print(model, found[-1], flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=RESULTS / "solvers.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    results = header("relative distance to fine deterministic steps", threads=args.threads, parts=PARTS)
    results["models"] = {
        model: [row for case in CASES[model] for row in measure(model, *case)] for model in args.models
    }
    write(args.output, results)


if __name__ == "__main__":
    main()
