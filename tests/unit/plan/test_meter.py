"""The meter counts what is allocated, on any device; the simulation makes the same calls as training does."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pcpo.observe.events import EventWriter
from pcpo.plan.memory import Line, estimate, kept_by_allocator, model_of
from pcpo.plan.meter import AllocationMeter, DeviceRules
from training import FAMILIES

META = torch.device("meta")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bytes_alive_and_at_the_peak(device):
    given = torch.zeros(100, device=device)
    with AllocationMeter() as meter:
        given + given  # made and dropped: 400 bytes
        kept = given * 2
        view = kept.view(10, 10).T
        given.add_(1)
        assert (meter.now, meter.peak) == (400, 400)
        both = torch.cat([kept, kept])
        assert (meter.now, meter.peak) == (1200, 1200)
        del kept, view
        assert meter.now == 800
        del both
    assert (meter.now, meter.peak, meter.turnover) == (0, 1200, 1600)


def test_what_a_backward_pass_keeps():
    x = torch.zeros(8, 16, device=META)
    weight = torch.zeros(16, 16, device=META, requires_grad=True)
    with AllocationMeter() as meter:
        y = F.relu(x @ weight)  # both are kept: the product by nobody, its positive part by relu
        assert meter.now == y.nbytes
        torch.autograd.backward(y.sum())
        del y
    assert meter.now == weight.nbytes  # the gradient


def test_attention_is_fused_and_autocast_keeps_a_copy_of_the_weight():
    q = torch.zeros(1, 2, 64, 8, device=META)
    with DeviceRules(None), AllocationMeter() as meter:
        F.scaled_dot_product_attention(q, q, q)
    assert meter.peak < 2 * 64 * 64 * 4  # not the matrix of all pairs
    weight = torch.zeros(8, 8, device=META, requires_grad=True)
    with DeviceRules(torch.bfloat16), AllocationMeter() as meter:
        first, second = F.linear(q, weight), F.linear(q, weight)
        assert first.dtype == second.dtype == torch.bfloat16
        assert F.layer_norm(first, (8,)).dtype == torch.float32
        first = second = None
        assert meter.now == weight.nbytes // 2  # until autocast is left, and the mode with it
    assert meter.now == 0


def test_a_line_through_two_points():
    assert Line.through((1, 5.0), (3, 9.0)).at(10) == 23.0
    assert Line.through((2, 5.0), (2, 5.0)).at(7) == 5.0
    assert Line.through((1, 5.0), (2, 4.0)).at(9) == 4.0  # a cost never falls


def test_resident_memory_lies_between_what_is_alive_and_what_was_ever_made():
    def metered(layers: int, again: int) -> AllocationMeter:
        x = torch.zeros(1000, device=META)
        with AllocationMeter() as meter:
            for _ in range(again):
                kept = [x + 1 for _ in range(layers)]
                del kept
        return meter

    once, often = metered(4, 1), metered(4, 25)
    assert kept_by_allocator(once) == once.peak == once.turnover == 16000  # nothing is freed, nothing is left over
    assert often.peak < kept_by_allocator(often) < often.turnover
    # of calls that hold the same, the one that allocates 25 times as much keeps up to 5 times as much
    assert kept_by_allocator(often) <= 5 * kept_by_allocator(once)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": {"gradient_checkpointing": True}},
        {"model": {"tune": "full"}},
        {"kl": {"form": "exact", "beta": 0.1}},
        {"batch": {"rollout": 2}},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_the_simulated_peak_is_that_of_a_real_iteration(trainer, folders, tmp_path, family, changes):
    if family == "sd_v" and changes:
        pytest.skip("differs from sd in its prediction only")
    batch = {"prompts": 2, "group_size": 8, **changes.get("batch", {})}
    it = trainer(family, **{**changes, "batch": batch})
    it.folder.mkdir(exist_ok=True)
    with EventWriter(it.folder / "events.jsonl") as events, AllocationMeter() as meter:
        it.learner.run(events)
    model = model_of(it.config)
    counts, calls = model.counts, model.activations
    latent = 4 * torch.Size(it.adapter.latent_shape).numel()
    kept = (3 * counts.pairs + counts.pictures) * latent
    trained = 4 * sum(p.numel() for p in it.state.parameters)
    simulated = max(
        kept + calls.sampling.at(counts.rollout_size),
        kept + calls.decoding.at(counts.rollout_size),
        kept + trained + calls.training.at(counts.update_size),
        kept + 4 * trained,  # gradients, moments, and what AdamW works with
    )
    assert meter.peak == pytest.approx(simulated, rel=0.1)
    assert estimate(model, 3).peak > simulated
    for alive, resident in zip(vars(calls).values(), vars(model.resident).values(), strict=True):
        assert resident.at(8) >= alive.at(8)
