"""Every other family and variant: what we sample is what its pipeline samples, and it trains."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from safetensors.torch import load_file, save_file

import tiny
from pcpo.errors import ModelError
from pcpo.models.flux import FluxAdapter
from pcpo.models.loading import load_adapter, load_pipeline, wrap_pipeline
from pcpo.models.sana import SanaAdapter
from pcpo.samplers import make_sampler
from pcpo.samplers.rollout import sample
from training import reddish, run

STEPS = 5
PROMPTS = ["red", "a blue boat"]


@dataclass
class Case:
    """A tiny pipeline and the options of its adapter."""

    make: Callable[[], Any]
    side: int = 16
    length: int | None = None

    def adapter(self):
        return wrap_pipeline(self.make(), resolution=self.side, max_sequence_length=self.length)


def scheduled(make, scheduler, **changes):
    """The pipeline of `make` with another scheduler."""
    pipe = make()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **changes)
    return pipe


def sana_with_its_usual_scheduler():
    """A DPM-Solver with flow sigmas; of first order it makes Euler steps."""
    settings = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0, "solver_order": 1}
    return scheduled(tiny.sana, DPMSolverMultistepScheduler, **settings)


CASES = {
    "sdxl": Case(lambda: scheduled(tiny.stable_diffusion_xl, DDIMScheduler, clip_sample=False)),
    "sdxl-v": Case(
        lambda: scheduled(tiny.stable_diffusion_xl, DDIMScheduler, clip_sample=False, prediction_type="v_prediction")
    ),
    "sd3-t5": Case(lambda: tiny.stable_diffusion_3(t5=True), length=16),
    "sd3-dynamic": Case(
        lambda: scheduled(tiny.stable_diffusion_3, FlowMatchEulerDiscreteScheduler, use_dynamic_shifting=True),
        length=1,
    ),
    "flux-dev": Case(tiny.flux, length=12),
    "flux-schnell": Case(lambda: tiny.flux(guidance_embeds=False), length=12),
    "sana": Case(tiny.sana, 32, 24),
    "sana-dpm": Case(sana_with_its_usual_scheduler, 32, 24),
    "qwen": Case(tiny.qwen_image),
}
TRAINED = ("sdxl", "flux-dev", "sana", "qwen")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # DPMSolverMultistepScheduler's
@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("family", CASES)
def test_without_noise_a_rollout_is_the_pipelines_own_sampling(family, scale):
    case = CASES[family]
    adapter = case.adapter()
    x_T = torch.randn(2, *adapter.latent_shape, generator=torch.Generator().manual_seed(3))
    grid, ode, cond = adapter.grid(STEPS), make_sampler("ode"), adapter.encode(PROMPTS)
    latents = sample(
        lambda x, i: adapter.predict(x, grid.timesteps.float()[i], cond, torch.arange(2), scale).detach(),
        ode, ode.stats(grid), x_T,
    )  # fmt: skip
    adapter.pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": STEPS, "height": case.side, "width": case.side}
    settings |= adapter.pipeline_arguments(scale)
    own = adapter.pipe(PROMPTS, latents=x_T, output_type="latent", **settings).images
    assert own.std() > 0.1
    torch.testing.assert_close(latents, own, rtol=0, atol=1e-4)
    shown = (adapter.pipe(PROMPTS, latents=x_T, output_type="pt", **settings).images * 255).round().to(torch.uint8)
    assert (adapter.decode(latents).int() - shown.int()).abs().max() <= 1


def test_flux_guidance_is_an_input_where_the_model_has_one():
    x, t, index = torch.randn(2, 16, 16), torch.tensor([500.0, 20.0]), torch.tensor([0, 1])
    for guidance_embeds in (True, False):
        adapter = CASES["flux-dev" if guidance_embeds else "flux-schnell"].adapter()
        with torch.no_grad():
            low, high = (adapter.predict(x, t, adapter.encode(PROMPTS), index, scale) for scale in (1.0, 4.0))
        assert torch.equal(low, high) is not guidance_embeds


def test_flux_wants_whole_patches():
    with pytest.raises(ModelError, match="multiple of 4"):
        FluxAdapter(tiny.flux(), resolution=18)
    with pytest.raises(ModelError, match="multiple of 32"):
        SanaAdapter(tiny.sana(), resolution=16)


def test_prompts_of_different_lengths_are_padded_with_a_mask():
    adapter = CASES["qwen"].adapter()
    cond = adapter.encode(PROMPTS)
    lengths = cond.prompt["mask"].sum(1)
    assert lengths[0] == lengths[1] - len(PROMPTS[1]) + len(PROMPTS[0]) and cond.prompt["mask"].all(1).tolist() == [
        False,
        True,
    ]
    x, t = torch.randn(2, *adapter.latent_shape), torch.tensor([500.0, 20.0])
    with torch.no_grad():
        together = adapter.predict(x, t, cond, torch.tensor([0, 1]), 3.0)
        alone = adapter.predict(x[:1], t[:1], adapter.encode(PROMPTS[:1]), torch.tensor([0]), 3.0)
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", TRAINED)
def test_a_run_trains_and_its_lora_loads_in_diffusers(family, tmp_path):
    from pcpo.trainer.loop import PCPOTrainer

    case, folder = CASES[family], tmp_path / "model"
    case.make().save_pretrained(folder)
    flow = family != "sdxl"
    settings = {
        "model": {"path": str(folder), "resolution": case.side, "max_sequence_length": case.length},
        "prompts": PROMPTS,
        "sampler": {"name": "flow_sde" if flow else "ddim", "steps": 3, "guidance_scale": 3.0},
        "credit": {"schedule": "proportional" if flow else "uniform"},
        "batch": {"prompts": 2, "group_size": 2},
        "train": {"iterations": 1, **({"select": "first", "fraction": 0.7} if flow else {})},
        "optim": {"learning_rate": 0.1},
        "evaluation": {"num_prompts": 1, "per_prompt": 1, "credit_probe": 0},
        "run": {"output": str(tmp_path / "run"), "device": "cpu"},
    }
    trainer = PCPOTrainer(config=settings, reward=reddish, quiet=True)
    log = run(trainer)
    assert log.iterations[0].ratio_error == 0 and log.iterations[0].grad_norm > 0
    fresh = load_adapter(str(folder), resolution=case.side, max_sequence_length=case.length)
    x, t, index = torch.randn(2, *fresh.latent_shape), torch.tensor([500.0, 20.0]), torch.tensor([0, 1])
    with torch.no_grad():
        base = fresh.predict(x, t, fresh.encode(PROMPTS), index, 3.0)
        tuned = trainer.adapter.predict(x, t, trainer.adapter.encode(PROMPTS), index, 3.0)
        fresh.pipe.load_lora_weights(tmp_path / "run" / "lora")
        loaded = fresh.predict(x, t, fresh.encode(PROMPTS), index, 3.0)
    assert not torch.equal(base, tuned)
    assert torch.equal(loaded, tuned)


@pytest.mark.parametrize("family", ["sdxl", "sd3-t5", "flux-dev", "sana", "qwen"])
def test_every_part_must_have_all_its_weights(family, tmp_path):
    """One tensor less in any part is refused by name; what is stored once for two (tied weights) is no gap."""
    pipe = CASES[family].make()
    pipe.save_pretrained(tmp_path)
    assert load_pipeline(str(tmp_path))
    for part in (name for name, value in pipe.components.items() if isinstance(value, torch.nn.Module)):
        (path,) = (tmp_path / part).glob("*.safetensors")
        whole, tensors = path.read_bytes(), load_file(path)
        first, second = sorted(tensors)[:2]
        save_file({key: t for key, t in tensors.items() if key not in (first, second)}, path, {"format": "pt"})
        with pytest.raises(ModelError, match=f"{part} lacks [23] of its weights: .*{re.escape(second)}"):
            load_pipeline(str(tmp_path))
        path.write_bytes(whole)


def test_the_pipeline_classes_are_diffusers_own(tmp_path):
    tiny.flux().save_pretrained(tmp_path)
    assert type(DiffusionPipeline.from_pretrained(tmp_path)).__name__ == FluxAdapter.pipeline_class
