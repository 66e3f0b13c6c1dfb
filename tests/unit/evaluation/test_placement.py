"""A run is sampled on the device and in the precision that it was trained in, unless one is asked for."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from pcpo.errors import ConfigError
from pcpo.evaluation.sampling import Placement, load_base, load_for_sampling, run_config
from pcpo.export.run import export_run
from training import scramble

CPU = Placement("cpu")


def predict(adapter):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *adapter.latent_shape, generator=generator)
    with torch.no_grad():
        return adapter.predict(x, torch.full((2,), 500.0), adapter.encode(["red"]), torch.zeros(2, dtype=torch.long), 3)


@pytest.fixture
def half(trainer):
    """A trainer that has run in bf16, with a LoRA that is far from 0."""
    it = trainer("sd", run={"precision": "bf16", "offload": "cpu"})
    scramble(it.adapter)
    it.train()
    return it


def test_a_run_in_bf16_is_sampled_in_bf16(half):
    loaded = load_for_sampling(str(half.folder))
    assert loaded.autocast == torch.bfloat16 and loaded.offload
    dtypes = {name: p.dtype for name, p in loaded.unwrapped.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if "lora" in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if "lora" not in name} == {torch.bfloat16}
    assert torch.equal(predict(loaded), predict(half.adapter))


def test_another_precision_can_be_asked_for(half):
    exact = load_for_sampling(str(half.folder), Placement("cpu", "fp32"))
    assert exact.autocast is None and exact.unwrapped.dtype == torch.float32
    assert 0 < (predict(exact) - predict(half.adapter)).abs().max() < 0.1
    assert load_for_sampling(half.config.model.path, Placement("cpu", "bf16")).unwrapped.dtype == torch.bfloat16
    assert load_for_sampling(half.config.model.path, CPU).unwrapped.dtype == torch.float32


def test_a_pipeline_is_exported_in_the_precision_of_the_run(half, tmp_path):
    for placement, dtype in [(CPU, torch.bfloat16), (Placement("cpu", "fp32"), torch.float32)]:
        folder = export_run(half.folder, output=tmp_path / str(dtype), merged=True, placement=placement)
        weights = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
        assert {value.dtype for value in weights.values()} == {dtype}


def test_what_is_fully_tuned_keeps_float32_weights(trainer):
    it = trainer("sd", model={"tune": "full"}, run={"precision": "bf16"})
    it.train()
    loaded = load_for_sampling(str(it.folder))
    assert loaded.unwrapped.dtype == torch.float32 and loaded.pipe.vae.dtype == torch.bfloat16
    assert torch.equal(predict(loaded), predict(it.adapter))


def test_a_device_or_precision_that_is_not_there_is_named(half):
    config = run_config(half.folder)
    with pytest.raises(ConfigError, match="--device: this machine has no tpu device -> use auto or cpu"):
        load_base(config, Placement("tpu"))
    with pytest.raises(ConfigError, match="--precision: unknown precision 'int8' -> use one of: fp32, fp16, bf16"):
        load_base(config, Placement("cpu", "int8"))
