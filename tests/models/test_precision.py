"""Frozen weights in fp16 and bf16, float32 where it counts, gradient checkpointing, and parts that leave the device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tiny
from pcpo.errors import ConfigError, ModelError
from pcpo.models.loading import load_adapter, wrap_pipeline
from pcpo.models.lora import add_lora, trainable
from pcpo.models.precision import cast
from training import run, same, weights

PROMPTS = ["red", "a blue boat"]
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
ROUNDING = {"fp16": 0.005, "bf16": 0.05}


def predict(adapter):
    x = torch.randn(2, *adapter.latent_shape, generator=torch.Generator().manual_seed(1))
    return adapter.predict(x, torch.tensor([500.0, 999.0]), adapter.encode(PROMPTS), torch.tensor([0, 1]), 3.0)


def dtypes(module):
    return {p.dtype for p in module.parameters()}


@pytest.mark.parametrize("family", ["sd", "sd_v", "sd3"])
@pytest.mark.parametrize("name", HALVES)
def test_frozen_weights_are_cast_and_the_lora_is_not(folders, family, name):
    length = 1 if family == "sd3" else None
    exact = load_adapter(str(folders[family]), max_sequence_length=length)
    adapter = load_adapter(str(folders[family]), max_sequence_length=length, dtype=HALVES[name])
    frozen = {part: dtypes(module) for part, module in adapter.parts().items()}
    assert frozen.pop("vae") == {torch.float32 if name == "fp16" else torch.bfloat16}
    assert all(found == {HALVES[name]} for found in frozen.values())
    add_lora(adapter, 4)
    assert {p.dtype for _, p in trainable(adapter.unwrapped)} == {torch.float32}
    out, expected = predict(adapter), predict(exact)
    assert out.dtype == torch.float32 and not torch.equal(out, expected)
    assert (out - expected).norm() < ROUNDING[name] * expected.norm()
    out.square().mean().backward()
    gradients = [p.grad for _, p in trainable(adapter.unwrapped)]
    assert all(g.dtype == torch.float32 for g in gradients) and any((g != 0).any() for g in gradients)


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize(
    "make, side", [(tiny.stable_diffusion_xl, 16), (tiny.flux, 16), (tiny.sana, 32), (tiny.qwen_image, 16)]
)
def test_other_families_train_in_it_without_a_warning(make, side, name, full):
    expected = predict(wrap_pipeline(make(), "cpu", side)).detach()
    adapter = wrap_pipeline(make(), "cpu", side)
    if (make, name) == (tiny.sana, "fp16"):
        with pytest.raises(ConfigError, match="can be 0 / 0 in fp16 -> use bf16"):
            adapter.use_precision(HALVES[name], full=full)
        return
    adapter.use_precision(HALVES[name], full=full)
    if full:
        adapter.unwrapped.requires_grad_(True)
    else:
        add_lora(adapter, 4)
    out = predict(adapter)
    assert out.dtype == torch.float32 and (out - expected).norm() < ROUNDING[name] * expected.norm()
    out.square().mean().backward()
    gradients = [p.grad for _, p in trainable(adapter.unwrapped) if p.grad is not None]
    assert {g.dtype for g in gradients} == {torch.float32} and all(g.isfinite().all() for g in gradients)


def test_what_is_tuned_in_full_keeps_float32(folders):
    adapter = load_adapter(str(folders["sd"]), dtype=torch.bfloat16, full=True)
    assert dtypes(adapter.unwrapped) == {torch.float32} and adapter.autocast == torch.bfloat16
    assert dtypes(adapter.pipe.text_encoder) == dtypes(adapter.pipe.vae) == {torch.bfloat16}


def test_a_t5_in_fp16_keeps_what_overflows():
    encoder = tiny.t5_encoder()
    cast(encoder, torch.float16)
    found = {name.split(".")[-2]: p.dtype for name, p in encoder.named_parameters()}
    assert found.pop("wo") == torch.float32 and set(found.values()) == {torch.float16}


@pytest.mark.parametrize("tune", ["lora", "full"])
@pytest.mark.parametrize("name", HALVES)
def test_a_run_trains_in_it(trainer, name, tune):
    it = trainer(model={"tune": tune}, run={"precision": name}, train={"iterations": 2, "updates": 2})
    before = weights(it)
    log = run(it)
    assert [event.ratio_error for event in log.iterations] == [0.0, 0.0]
    assert all(event.grad_norm > 0 for event in log.iterations)
    after = weights(it)
    assert not same(before, after) and {value.dtype for value in after.values()} == {torch.float32}
    assert it.state.scaler.is_enabled() is (name == "fp16")


def test_in_fp16_the_gradient_is_that_of_fp32(trainer):
    """The loss is scaled before the backward pass and the gradients after it; without that, most of them are zero."""
    norms = {
        name: run(trainer(output=name, run={"precision": name})).iterations[0].grad_norm for name in ("fp32", "fp16")
    }
    assert norms["fp16"] == pytest.approx(norms["fp32"], rel=0.05)


def test_an_overflow_leaves_the_step_out_and_lowers_the_scale(trainer):
    it = trainer(run={"precision": "fp16"}, train={"iterations": 1, "updates": 2})
    before, seen = weights(it), []
    it.state.parameters[0].register_hook(lambda g: seen.append(g) or (g * float("inf") if len(seen) == 1 else g))
    log = run(it)
    assert it.state.scaler.get_scale() == 2.0**15 and log.iterations[0].grad_norm > 0
    assert not same(before, weights(it)) and all(value.isfinite().all() for value in weights(it).values())


@pytest.mark.parametrize("family", ["sd", "sd3"])
@pytest.mark.parametrize("tune", ["lora", "full"])
def test_gradient_checkpointing_changes_no_bit(trainer, family, tune):
    runs = []
    for switch in (False, True):
        it = trainer(family, output=str(switch), model={"tune": tune, "gradient_checkpointing": switch})
        assert it.adapter.unwrapped.is_gradient_checkpointing is switch
        log = run(it)
        runs.append((weights(it), log.iterations[0].loss, log.iterations[0].grad_norm))
    assert same(runs[0][0], runs[1][0]) and runs[0][1:] == runs[1][1:]


class Moves:
    """Where the parts of an adapter are sent; "here" is the run's device."""

    def __init__(self, adapter, monkeypatch):
        self.made, names = [], {id(part): name for name, part in adapter.parts().items()}
        original = nn.Module.to

        def to(module, *args, **kwargs):
            if id(module) in names and isinstance(args[0], torch.device | str):
                self.made.append((names[id(module)], "here" if args[0] == adapter.device else str(args[0])))
            return original(module, *args, **kwargs)

        monkeypatch.setattr(nn.Module, "to", to)


def test_parts_are_on_the_device_only_while_they_work(monkeypatch):
    pipe = tiny.stable_diffusion_3(t5=True)
    here = torch.device("cpu", 0)  # the CPU under a name of its own
    adapter = type(wrap_pipeline(pipe))(pipe, here, offload=True, max_sequence_length=16)
    moves = Moves(adapter, monkeypatch)
    encoders = ["text_encoder", "text_encoder_2", "text_encoder_3"]
    adapter.encode(PROMPTS)
    assert moves.made == [(name, "here") for name in encoders] + [(name, "cpu") for name in encoders]
    moves.made.clear()
    adapter.encode(PROMPTS[::-1])
    with torch.no_grad():
        predict(adapter), predict(adapter)
    assert moves.made == [("transformer", "here")]
    moves.made.clear()
    adapter.decode(torch.zeros(1, *adapter.latent_shape))
    assert moves.made == [("vae", "here"), ("vae", "cpu")]


def test_offloading_and_a_disk_cache_change_no_bit(trainer, tmp_path):
    plain = trainer()
    expected = run(plain).iterations[0]
    for number, settings in enumerate(
        [{"offload": "cpu"}, {"offload": "drop"}, {"embedding_cache": str(tmp_path / "cache"), "offload": "drop"}]
    ):
        it = trainer(output=str(number), run=settings)
        found = run(it).iterations[0]
        assert found.loss == expected.loss and same(weights(it), weights(plain))
        assert (it.pipeline.text_encoder is None) is (settings["offload"] == "drop")
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 4  # three prompts and the empty one
    with pytest.raises(ModelError, match="dropped before this prompt was encoded: 'new'"):
        it.adapter.encode(["new"])


def test_vae_switches(trainer, folders):
    exact = load_adapter(str(folders["sd"]))
    it = trainer(run={"vae_slicing": True, "vae_tiling": True})
    assert it.pipeline.vae.use_slicing and it.pipeline.vae.use_tiling
    latents = torch.randn(3, *exact.latent_shape, generator=torch.Generator().manual_seed(0))
    assert (it.adapter.decode(latents).int() - exact.decode(latents).int()).abs().max() <= 1


def test_attention_backends_are_diffusers_own(trainer):
    it = trainer("sd3", model={"attention_backend": "_native_math"})
    assert run(it).iterations[0].grad_norm > 0
    with pytest.raises(ConfigError, match=r"model.attention_backend: diffusers refuses nothing"):
        trainer("sd3", output="other", model={"attention_backend": "nothing"})
