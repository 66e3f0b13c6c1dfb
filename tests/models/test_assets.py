"""The shipped folders: they load without our code, stay small, hold no pickles, and do what their cards say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from safetensors import safe_open
from transformers import AutoModel, AutoTokenizer

ASSETS = Path(__file__).parents[2] / "src/pcpo/assets"
LIMITS_MB = {"emoji-sd": 16, "emoji-sd3": 16, "emoji-clip": 8}
PIPELINES = ("emoji-sd", "emoji-sd3")
SAMPLING = {"height": 64, "width": 64, "num_inference_steps": 12, "output_type": "pt"}


def load(name):
    pipe = DiffusionPipeline.from_pretrained(ASSETS / name)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, prompts, scale=4.0, **extra):
    if hasattr(pipe, "transformer"):
        extra.setdefault("max_sequence_length", 1)
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    return pipe(prompts, generator=generators, guidance_scale=scale, **SAMPLING, **extra).images


@pytest.fixture(scope="module", params=PIPELINES)
def pipe(request):
    return load(request.param)


@pytest.fixture(scope="module")
def score():
    model = AutoModel.from_pretrained(ASSETS / "emoji-clip").eval()
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "emoji-clip")

    @torch.no_grad()
    def cosine(images, prompts):
        """[N, 3, 64, 64] in [0, 1] and M prompts to cosines [N, M]."""
        ids = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        text = model.text_projection(model.text_model(input_ids=ids).pooler_output)
        image = model.visual_projection(model.vision_model(pixel_values=images * 2 - 1).pooler_output)
        return F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T

    return cosine


@pytest.mark.parametrize("name", LIMITS_MB)
def test_folder_is_small_and_free_of_pickles(name):
    files = [path for path in (ASSETS / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMITS_MB[name] * 1e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md", ".png"}
    assert any(path.suffix == ".safetensors" for path in files)


@pytest.mark.parametrize("name", LIMITS_MB)
def test_weights_are_finite(name):
    for path in (ASSETS / name).rglob("*.safetensors"):
        with safe_open(path, "pt") as tensors:
            assert all(bool(tensors.get_tensor(key).isfinite().all()) for key in tensors.keys())  # noqa: SIM118


@pytest.mark.parametrize("name", LIMITS_MB)
def test_card_shows_the_measured_figures(name):
    card = (ASSETS / name / "README.md").read_text(encoding="utf-8")
    metrics = json.loads((ASSETS / name / "metrics.json").read_text(encoding="utf-8"))
    assert card.startswith("---\nlicense: apache-2.0")
    figures = metrics.get("common50", metrics.get("unseen style, generator concepts"))
    assert f"{figures['top1']:.2f} | {figures['top5']:.2f}" in card


def test_pipeline_loads_as_float32(pipe):
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert {p.dtype for module in modules for p in module.parameters()} == {torch.float32}
    assert pipe.vae_scale_factor == 8
    assert pipe.vae.config.scaling_factor == 1.0
    assert pipe.vae.config.shift_factor == 0.0


def test_schedulers_have_the_published_settings():
    scheduler = load("emoji-sd").scheduler
    assert isinstance(scheduler, DDIMScheduler)
    assert scheduler.config.prediction_type == "epsilon"
    assert (scheduler.config.beta_start, scheduler.config.beta_end) == (0.00085, 0.012)
    assert scheduler.config.beta_schedule == "scaled_linear"
    assert not scheduler.config.clip_sample
    flow = load("emoji-sd3").scheduler
    assert isinstance(flow, FlowMatchEulerDiscreteScheduler)
    assert flow.config.shift == 3.0


def test_sampling_is_deterministic_and_finite(pipe):
    first, second = draw(pipe, ["red apple", "blue heart"]), draw(pipe, ["red apple", "blue heart"])
    assert first.shape == (2, 3, 64, 64)
    assert bool(first.isfinite().all())
    assert torch.equal(first, second)


def test_default_call_draws_64_by_64(pipe):
    image = pipe("red apple", num_inference_steps=2, output_type="pt").images
    assert image.shape == (1, 3, 64, 64)


def test_latents_have_unit_scale(pipe):
    images = draw(pipe, ["red apple", "cat face", "pizza", "star"]) * 2 - 1
    with torch.no_grad():
        z = pipe.vae.encode(images).latent_dist.mean
    assert 0.7 < float(z.std()) < 1.4
    assert abs(float(z.mean())) < 0.3


def test_scorer_recognises_generated_pictures(pipe, score):
    prompts = ["red apple", "banana", "red heart", "panda", "pizza", "sun", "frog", "soccer ball"]
    best = score(draw(pipe, prompts), prompts).argmax(1)
    assert int((best == torch.arange(len(prompts))).sum()) >= 6


def test_silent_t5_equals_no_t5():
    full = load("emoji-sd3")
    bare = DiffusionPipeline.from_pretrained(ASSETS / "emoji-sd3", text_encoder_3=None, tokenizer_3=None)
    bare.set_progress_bar_config(disable=True)
    assert torch.equal(draw(full, ["pizza"]), draw(bare, ["pizza"]))
