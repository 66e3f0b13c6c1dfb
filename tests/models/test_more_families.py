"""Stable Diffusion XL and FLUX.1: what we sample is what their pipelines sample, and they train."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline

import tiny
from pcpo.errors import ModelError
from pcpo.models.flux import FluxAdapter
from pcpo.models.loading import load_adapter
from pcpo.models.stable_diffusion_xl import StableDiffusionXLAdapter
from pcpo.samplers import make_sampler
from pcpo.samplers.rollout import sample
from training import reddish, run

STEPS, SIDE = 5, 16
PROMPTS = ["red", "a blue boat"]


def sdxl():
    pipe = tiny.stable_diffusion_xl()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    return StableDiffusionXLAdapter(pipe), {}


def flux(guidance_embeds):
    return FluxAdapter(tiny.flux(guidance_embeds), resolution=SIDE, max_sequence_length=12), {"max_sequence_length": 12}


CASES = {"sdxl": sdxl, "flux-dev": lambda: flux(True), "flux-schnell": lambda: flux(False)}


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("family", CASES)
def test_without_noise_a_rollout_is_the_pipelines_own_sampling(family, scale):
    adapter, length = CASES[family]()
    x_T = torch.randn(2, *adapter.latent_shape, generator=torch.Generator().manual_seed(3))
    grid, ode, cond = adapter.grid(STEPS), make_sampler("ode"), adapter.encode(PROMPTS)
    latents = sample(
        lambda x, i: adapter.predict(x, grid.timesteps.float()[i], cond, torch.arange(2), scale).detach(),
        ode, ode.stats(grid), x_T,
    )  # fmt: skip
    adapter.pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": STEPS, "guidance_scale": scale, "height": SIDE, "width": SIDE, **length}
    own = adapter.pipe(PROMPTS, latents=x_T, output_type="latent", **settings).images
    assert own.std() > 0.1
    torch.testing.assert_close(latents, own, rtol=0, atol=1e-4)
    shown = (adapter.pipe(PROMPTS, latents=x_T, output_type="pt", **settings).images * 255).round().to(torch.uint8)
    assert (adapter.decode(latents).int() - shown.int()).abs().max() <= 1


def test_flux_guidance_is_an_input_where_the_model_has_one():
    x, t, index = torch.randn(2, 16, 16), torch.tensor([500.0, 20.0]), torch.tensor([0, 1])
    for guidance_embeds in (True, False):
        adapter, _ = flux(guidance_embeds)
        with torch.no_grad():
            low, high = (adapter.predict(x, t, adapter.encode(PROMPTS), index, scale) for scale in (1.0, 4.0))
        assert torch.equal(low, high) is not guidance_embeds


def test_flux_wants_whole_patches():
    with pytest.raises(ModelError, match="multiple of 4"):
        FluxAdapter(tiny.flux(), resolution=18)


@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_a_run_trains_and_its_lora_loads_in_diffusers(family, tmp_path):
    from pcpo.trainer.loop import PCPOTrainer

    folder = tmp_path / "model"
    (tiny.stable_diffusion_xl() if family == "sdxl" else tiny.flux()).save_pretrained(folder)
    flow = family == "flux"
    settings = {
        "model": {"path": str(folder), "resolution": SIDE, **({"max_sequence_length": 12} if flow else {})},
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
    fresh = load_adapter(str(folder), resolution=SIDE, max_sequence_length=12 if flow else None)
    x, t, index = torch.randn(2, *fresh.latent_shape), torch.tensor([500.0, 20.0]), torch.tensor([0, 1])
    with torch.no_grad():
        base = fresh.predict(x, t, fresh.encode(PROMPTS), index, 3.0)
        tuned = trainer.adapter.predict(x, t, trainer.adapter.encode(PROMPTS), index, 3.0)
        fresh.pipe.load_lora_weights(tmp_path / "run" / "lora")
        loaded = fresh.predict(x, t, fresh.encode(PROMPTS), index, 3.0)
    assert not torch.equal(base, tuned)
    assert torch.equal(loaded, tuned)


def test_the_pipeline_classes_are_diffusers_own(tmp_path):
    tiny.flux().save_pretrained(tmp_path)
    assert type(DiffusionPipeline.from_pretrained(tmp_path)).__name__ == FluxAdapter.pipeline_class
