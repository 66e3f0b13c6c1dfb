"""A folded LoRA layer is peft's layer: the same function and the same gradients, in one product."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig
from torch import nn

from pcpo.models.folded import FoldedLinear, folded
from pcpo.models.loading import load_adapter
from pcpo.models.lora import add_lora, trainable
from training import run, weights


def drawn(*shape, grad=True):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=grad)


@pytest.mark.parametrize("with_bias", [True, False])
def test_its_gradients_are_those_of_finite_differences(with_bias):
    torch.manual_seed(0)
    x, a, b = drawn(2, 3, 5), drawn(2, 5), drawn(4, 2)
    weight, bias = drawn(4, 5, grad=False), drawn(4, grad=False) if with_bias else None
    assert torch.autograd.gradcheck(lambda x, a, b: FoldedLinear.apply(x, weight, bias, a, b, 3.3), (x, a, b))


def outcome(net, x, inside):
    """Prediction and gradients [n] of a LoRA."""
    net.zero_grad()
    if inside:
        with folded(net):
            out = net(x)
            out.square().sum().backward()
    else:
        out = net(x)
        out.square().sum().backward()
    return out.detach(), torch.cat([p.grad.flatten() for _, p in trainable(net)])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x):
        return self.second(self.first(x).tanh()[:, 1:])


def tuned(dtype=torch.float64, **options):
    from peft import inject_adapter_in_model

    torch.manual_seed(1)
    config = LoraConfig(r=2, lora_alpha=7, target_modules=["first", "second"], init_lora_weights=False, **options)
    return inject_adapter_in_model(config, Net()).to(dtype)


def test_it_is_peft_s_layer_in_float64():
    net = tuned()
    x = drawn(2, 4, 6)
    (expected, grads), (found, folded_grads) = outcome(net, x, False), outcome(net, x, True)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(folded_grads, grads, rtol=1e-12, atol=1e-12)
    assert not torch.equal(found, expected), "the folded path was not taken"
    assert torch.equal(net(x), expected), "peft's path is back"


def test_in_float32_it_errs_as_peft_s_path_does():
    """The change of a prediction by a small step of the LoRA, against float64: not lost in the sum W + s B A."""
    net, x = tuned(torch.float32), torch.randn(64, 4, 6)
    stepped = copy.deepcopy(net)
    with torch.no_grad():
        for _, p in trainable(stepped):
            p.add_(1e-4 * torch.randn_like(p))
        exact = copy.deepcopy(stepped).double()(x.double()) - copy.deepcopy(net).double()(x.double())
    errors = []
    for inside in (False, True):
        change = outcome(stepped, x, inside)[0] - outcome(net, x, inside)[0]
        errors.append(float((change - exact).square().mean().sqrt()))
    assert errors[1] < 2 * errors[0]


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_dropout": 0.1}, {"lora_bias": True}])
def test_other_layers_are_left_to_peft(options):
    net = tuned(**options).eval()
    x = drawn(2, 4, 6)
    assert torch.equal(outcome(net, x, True)[0], outcome(net, x, False)[0])


def test_a_bf16_base_and_other_hooks_are_left_to_peft():
    net = tuned()
    net.first.base_layer.to(torch.float32)
    net.second.forward = net.second.forward  # another's
    with folded(net):
        assert "forward" not in vars(net.first)
    assert "forward" in vars(net.second)


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_off_it_is_the_base_model_bit_for_bit(folders, family):
    adapter = load_adapter(str(folders[family]))
    cond, x = adapter.encode(["red apple"]), torch.randn(1, *adapter.latent_shape)

    def predict():
        with torch.no_grad():
            return adapter.predict(x, torch.tensor([500.0]), cond, torch.tensor([0]), 3.0)

    base = predict()
    add_lora(adapter, 4)
    for _, p in trainable(adapter.unwrapped):
        nn.init.normal_(p, std=0.1)
    tuned = predict()
    with folded(adapter.unwrapped), adapter.reference():
        assert torch.equal(predict(), base)
    with folded(adapter.unwrapped):
        torch.testing.assert_close(predict(), tuned, rtol=1e-3, atol=1e-3)
        assert not torch.equal(predict(), tuned)
    assert torch.equal(predict(), tuned)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_training_is_that_of_peft_s_path(trainer, family, checkpointing):
    """The first gradient to rounding; the first log-ratio of every rollout is 0; evaluation stays on peft's path."""
    made = []
    for fold in (False, True):
        model = {"lora": {"fold": fold}, "gradient_checkpointing": checkpointing}
        it = trainer(family, output=str(fold), model=model, train={"iterations": 2})
        log = run(it)
        assert [event.ratio_error for event in log.iterations] == [0.0, 0.0]
        made.append((log.iterations[0].grad_norm, weights(it), it))
    assert made[0][0] == pytest.approx(made[1][0], rel=1e-4)
    assert any(not torch.equal(made[0][1][name], value) for name, value in made[1][1].items())
    assert not any("forward" in vars(layer) for layer in made[1][2].adapter.unwrapped.modules())
