from __future__ import annotations

import pytest
import torch

from pcpo.errors import ConfigError
from pcpo.samplers import parameterisation as p

ALPHA_BAR = torch.tensor([0.999, 0.5, 0.01], dtype=torch.float64)
TIMES = torch.tensor([0.01, 0.5, 0.99], dtype=torch.float64)


@pytest.fixture
def parts():
    g = torch.Generator().manual_seed(0)
    return [torch.randn(3, 2, 4, generator=g, dtype=torch.float64) for _ in range(2)]


def test_diffusion(parts):
    x0, eps = parts
    alpha, sigma = (c.view(3, 1, 1) for c in (ALPHA_BAR.sqrt(), (1 - ALPHA_BAR).sqrt()))
    x_t, v = alpha * x0 + sigma * eps, alpha * eps - sigma * x0
    named = {"x0": x0, "eps": eps, "v": v}
    for a, b in [("x0", "eps"), ("eps", "x0"), ("x0", "v"), ("v", "x0"), ("eps", "v"), ("v", "eps")]:
        convert = getattr(p, f"diffusion_{a}_from_{b}")
        torch.testing.assert_close(convert(named[b], x_t, ALPHA_BAR), named[a], rtol=1e-9, atol=1e-10)


def test_flow(parts):
    x0, eps = parts
    t = TIMES.view(3, 1, 1)
    x_t = (1 - t) * x0 + t * eps
    named = {"x0": x0, "eps": eps, "v": eps - x0}
    for a, b in [("x0", "eps"), ("eps", "x0"), ("x0", "v"), ("v", "x0"), ("eps", "v"), ("v", "eps")]:
        convert = getattr(p, f"flow_{a}_from_{b}")
        torch.testing.assert_close(convert(named[b], x_t, TIMES), named[a], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("family, rows", [("diffusion", ALPHA_BAR), ("flow", TIMES)], ids=["diffusion", "flow"])
@pytest.mark.parametrize("a, b", [("x0", "eps"), ("x0", "v"), ("eps", "v")])
def test_round_trip(parts, family, rows, a, b):
    value, x_t = parts
    there = getattr(p, f"{family}_{b}_from_{a}")(value, x_t, rows)
    back = getattr(p, f"{family}_{a}_from_{b}")(there, x_t, rows)
    torch.testing.assert_close(back, value, rtol=1e-9, atol=1e-9)


def test_prediction_types(parts):
    eps, x_t = parts
    for kind, prediction in [
        ("epsilon", eps),
        ("v_prediction", p.diffusion_v_from_eps(eps, x_t, ALPHA_BAR)),
        ("sample", p.diffusion_x0_from_eps(eps, x_t, ALPHA_BAR)),
    ]:
        torch.testing.assert_close(p.diffusion_eps(prediction, x_t, ALPHA_BAR, kind), eps, rtol=1e-9, atol=1e-9)
    with pytest.raises(ConfigError, match="flow_prediction"):
        p.diffusion_eps(eps, x_t, ALPHA_BAR, "flow_prediction")


def test_result_keeps_the_dtype_of_the_latents(parts):
    eps, x_t = (part.float() for part in parts)
    assert p.diffusion_v_from_eps(eps, x_t, ALPHA_BAR).dtype == torch.float32
    assert p.flow_x0_from_v(eps, x_t, TIMES).dtype == torch.float32
