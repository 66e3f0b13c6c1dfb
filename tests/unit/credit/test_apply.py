from __future__ import annotations

from itertools import product

import pytest
import torch

from pcpo.credit import APPLY, CREDIT, check_credit, step_credit
from pcpo.credit.schedules import native, proportional, uniform
from pcpo.errors import ConfigError
from pcpo.samplers import make_sampler
from pcpo.samplers.grids import ddim_grid, flow_grid

STATS = {
    "diffusion": make_sampler("ddim").stats(ddim_grid(20)),
    "flow": make_sampler("flow_sde").stats(flow_grid(10, 3.0)),
}
ON_LOSS = ("noise_aware", "guard", "guard_dt")
LEGAL = {
    *product(("native", "uniform", "proportional", "adaptive"), ("matching", "ratio"), ("flow",)),
    *product(("native", "uniform", "adaptive"), ("matching", "ratio"), ("diffusion",)),
    *product(ON_LOSS, ("loss",), ("flow", "diffusion")),
    ("uniform", "variance", "diffusion"),
    ("uniform", "lambda", "diffusion"),
}


@pytest.mark.parametrize("case", list(product(CREDIT, APPLY, ("flow", "diffusion"))), ids="-".join)
def test_legal_combinations(case):
    if case in LEGAL:
        check_credit(*case)
        return
    with pytest.raises(ConfigError) as error:
        check_credit(*case)
    assert error.value.fix


@pytest.mark.parametrize("case", sorted(LEGAL), ids="-".join)
def test_target_is_the_product_of_the_parts(case):
    schedule, apply, family = case
    credit = step_credit(STATS[family], schedule, apply)
    product_ = credit.ratio_weight * credit.ratio_scale * credit.loss_weight * credit.prediction_scale
    torch.testing.assert_close(credit.target, product_, rtol=1e-12, atol=0)
    assert torch.equal(credit.native, native(STATS[family]))
    for name in credit.__dataclass_fields__:
        value = getattr(credit, name)
        assert value.shape == STATS[family].t.shape and value.dtype == torch.float64 and value.isfinite().all()


def test_where_the_target_acts():
    stats = STATS["diffusion"]
    w, target = native(stats), uniform(stats)
    ones = torch.ones_like(w)
    matching = step_credit(stats, "uniform", "matching")
    assert torch.equal(matching.ratio_weight, target) and torch.equal(matching.ratio_scale, ones)
    ratio = step_credit(stats, "uniform", "ratio")
    assert torch.equal(ratio.ratio_weight, w) and torch.equal(ratio.ratio_scale, target / w)
    scaled = step_credit(stats, "uniform", "lambda")
    # lambda_t = wbar s / k
    torch.testing.assert_close(scaled.prediction_scale, w.mean() * stats.std / stats.pred_coef)
    assert torch.equal(scaled.ratio_weight, w)
    loss = step_credit(stats, "noise_aware", "loss")
    assert loss.loss_weight.mean() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(loss.loss_weight, stats.std / stats.std.mean())
    flow = step_credit(STATS["flow"], "proportional", "matching")
    assert torch.equal(flow.ratio_weight, proportional(STATS["flow"]))


def test_rows():
    credit = step_credit(STATS["flow"], "proportional", "ratio")
    rows = torch.tensor([4, 1])
    assert torch.equal(credit[rows].ratio_scale, credit.ratio_scale[rows])


@pytest.mark.parametrize("schedule, apply", [("proportionate", "matching"), ("uniform", "matchin")])
def test_unknown_names_get_the_nearest(schedule, apply):
    for call in (
        lambda: check_credit(schedule, apply, "flow"),
        lambda: step_credit(STATS["flow"], schedule, apply),
    ):
        with pytest.raises(ConfigError, match=r"did you mean '(proportional|matching)'"):
            call()


@pytest.mark.parametrize("schedule", CREDIT)
def test_deterministic_steps_have_no_credit(schedule):
    stats = make_sampler("cps").stats(flow_grid(5))
    with pytest.raises(ConfigError, match="step 4 draws no noise"):
        CREDIT[schedule].function(stats)


def test_one_trained_step_keeps_its_weight():
    stats = STATS["flow"][:1]
    torch.testing.assert_close(proportional(stats), native(stats))
