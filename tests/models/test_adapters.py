"""Adapters against the pipelines that they wrap, and what a run leaves behind loaded back into them."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline

from pcpo.data.prompts import Prompt
from pcpo.errors import RunFolderError
from pcpo.evaluation.sampling import load_for_sampling, sample_images
from pcpo.models.loading import load_adapter
from pcpo.models.lora import LORA_FILE, add_lora, save_tuned
from pcpo.samplers import make_sampler
from pcpo.trainer.collect import Request, calls, sample_latents
from pcpo.trainer.step import Policy
from training import FAMILIES, run, scramble

PROMPTS = ["red", "a blue boat"]
STEPS = 5


def predict(adapter, scale=3.0):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, *adapter.latent_shape, generator=generator)
    with torch.no_grad():
        return adapter.predict(x, torch.tensor([500.0, 20.0]), adapter.encode(PROMPTS), torch.tensor([0, 1]), scale)


def request(seed=0):
    return Request([Prompt(text) for text in PROMPTS], torch.tensor([0, 1]), [0, 0], [0, 0], seed)


def pictures(adapter, scale):
    """Latents and pictures [2, ...] of the deterministic rollout."""
    grid, sampler = adapter.grid(STEPS), make_sampler("ode")
    parts = calls(Policy(adapter, grid, scale), request(), adapter.encode(PROMPTS), 2, lambda done: None)
    latents = sample_latents(parts, sampler, sampler.stats(grid))
    return latents, adapter.decode(latents)


def by_pipeline(pipe, shape, scale, output_type):
    """What `pipe(...)` makes of the same noise."""
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        PROMPTS,
        latents=request().noise(-1, shape, slice(0, 2)),
        num_inference_steps=STEPS,
        guidance_scale=scale,
        output_type=output_type,
    ).images


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_noise_a_rollout_is_the_pipelines_own_sampling(folders, family, scale):
    adapter = load_adapter(str(folders[family]))
    pipe = DiffusionPipeline.from_pretrained(
        folders[family], **({"text_encoder_3": None, "tokenizer_3": None} if family == "sd3" else {})
    )
    latents, images = pictures(adapter, scale)
    assert latents.std() > 0.1
    torch.testing.assert_close(latents, by_pipeline(pipe, adapter.latent_shape, scale, "latent"), rtol=0, atol=1e-4)
    own = (by_pipeline(pipe, adapter.latent_shape, scale, "pt") * 255).round().to(torch.uint8)
    assert images.dtype == torch.uint8 and images.shape == (2, 3, 16, 16)
    assert (images.int() - own.int()).abs().max() <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_encoded_alone_and_once(folders, family):
    adapter = load_adapter(str(folders[family]))
    together, alone = adapter.encode(PROMPTS), adapter.encode(PROMPTS[1:])
    for name, rows in together.prompt.items():
        assert torch.equal(rows[1:], alone.prompt[name]) and not torch.equal(rows[0], rows[1])
        assert rows.dtype == torch.float32 and len(together.empty[name]) == 1
    adapter.encode_one = None  # not called again
    assert torch.equal(adapter.encode(PROMPTS[::-1]).prompt["prompt_embeds"][0], together.prompt["prompt_embeds"][1])


def test_guidance_is_its_formula(folders):
    adapter = load_adapter(str(folders["sd"]))
    cond = adapter.encode(PROMPTS)
    x, t, index = torch.randn(2, *adapter.latent_shape), torch.tensor([500.0, 20.0]), torch.tensor([1, 0])
    with torch.no_grad():
        prompt = adapter.forward(x, t, cond.rows(index, guided=False))
        empty = adapter.forward(x, t, {"prompt_embeds": cond.empty["prompt_embeds"].expand(2, -1, -1)})
        for scale in (3.0, 1.0, 0.0):
            expected = empty + scale * (prompt - empty) if scale > 1 else prompt
            torch.testing.assert_close(adapter.predict(x, t, cond, index, scale), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_with_the_lora_off_it_is_the_base_model_bit_for_bit(folders, family):
    adapter = load_adapter(str(folders[family]))
    base = predict(adapter)
    add_lora(adapter, 4)
    assert torch.equal(predict(adapter), base)
    scramble(adapter)
    tuned = predict(adapter)
    assert not torch.equal(tuned, base)
    with adapter.reference():
        assert torch.equal(predict(adapter), base)
    assert torch.equal(predict(adapter), tuned)
    with pytest.raises(ZeroDivisionError), adapter.reference():
        raise ZeroDivisionError
    assert torch.equal(predict(adapter), tuned)


def test_the_kept_copy_is_the_base_model_bit_for_bit(folders):
    adapter = load_adapter(str(folders["sd"]))
    base = predict(adapter)
    adapter.keep_reference()
    adapter.unwrapped.requires_grad_(True)
    scramble(adapter, 0.01)
    tuned = predict(adapter)
    with adapter.reference():
        assert torch.equal(predict(adapter), base)
    assert torch.equal(predict(adapter), tuned) and not torch.equal(tuned, base)


def test_v_prediction_is_told_as_eps(folders):
    """eps = sqrt(ab) v + sqrt(1 - ab) x."""
    adapter = load_adapter(str(folders["sd_v"]))
    cond, t = adapter.encode(PROMPTS[:1]), torch.tensor([321.0])
    x = torch.randn(1, *adapter.latent_shape)
    with torch.no_grad():
        v = adapter.backbone(x, t, encoder_hidden_states=cond.prompt["prompt_embeds"]).sample
        eps = adapter.predict(x, t, cond, torch.tensor([0]), 1.0)
    alpha_bar = adapter.pipe.scheduler.alphas_cumprod[321]
    torch.testing.assert_close(eps, alpha_bar.sqrt() * v + (1 - alpha_bar).sqrt() * x)


# alpha / rank far from 1, so that an export that loses alpha cannot pass
@pytest.mark.parametrize("alpha", [None, 1.0, 24.0])
@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_diffusers_loads_the_saved_lora(folders, tmp_path, family, alpha):
    adapter = load_adapter(str(folders[family]))
    base = predict(adapter)
    add_lora(adapter, 4, alpha)
    scramble(adapter)
    folder = save_tuned(adapter, tmp_path, "lora")
    tuned = predict(adapter)
    assert not torch.allclose(tuned, base, atol=1e-3)
    fresh = load_adapter(str(folders[family]))
    fresh.pipe.load_lora_weights(folder)
    assert torch.equal(predict(fresh), tuned)
    assert [path.name for path in folder.iterdir()] == [LORA_FILE]


@pytest.mark.parametrize("tune", ["lora", "full"])
@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_a_run_is_sampled_with_what_it_learnt(trainer, tmp_path, family, tune):
    it = trainer(family, model={"tune": tune}, optim={"learning_rate": 1e-2}, train={"iterations": 2})
    base = predict(it.adapter)
    run(it)
    loaded = load_for_sampling(str(it.folder))
    parts = [part for part in loaded.pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert not any(p.data_ptr() % 64 for part in parts for p in part.parameters()), "as torch allocates: same last bits"
    assert torch.equal(predict(loaded), predict(it.adapter)) and not torch.equal(predict(loaded), base)
    prompts = [Prompt(text) for text in PROMPTS]
    options = {"steps": 3, "guidance_scale": 3.0, "seed": 0}
    sheets = [
        sample_images(adapter, prompts, count=count, output=tmp_path / str(number), batch=batch, **options)
        for number, (adapter, count, batch) in enumerate([(loaded, 3, 16), (it.adapter, 3, 16), (loaded, 2, 16)])
    ]
    one, other, fewer = (sorted(sheet.parent.glob("0*.png")) for sheet in sheets)
    assert len(one) == 6 and [p.read_bytes() for p in one] == [p.read_bytes() for p in other]
    # a picture is that of (seed, prompt, number), however many there are
    assert [p.read_bytes() for p in fewer] == [one[n].read_bytes() for n in (0, 1, 3, 4)]


def test_the_tuned_pipeline_is_an_ordinary_one(trainer, tmp_path):
    it = trainer(optim={"learning_rate": 1e-2})
    run(it)
    expected = by_pipeline(it.pipeline, it.adapter.latent_shape, 3.0, "latent")
    fresh = DiffusionPipeline.from_pretrained(it.config.model.path)
    base = by_pipeline(copy.copy(fresh), it.adapter.latent_shape, 3.0, "latent")
    fresh.load_lora_weights(it.folder / "lora")
    assert torch.equal(by_pipeline(fresh, it.adapter.latent_shape, 3.0, "latent"), expected)
    assert not torch.equal(base, expected)


def test_a_run_without_weights_yet(trainer, tmp_path):
    from pcpo.trainer import runfolder

    it = trainer()
    runfolder.create(it.folder, it.config)
    with pytest.raises(RunFolderError, match="no tuned weights yet"):
        load_for_sampling(str(it.folder))


def test_another_resolution(folders):
    adapter = load_adapter(str(folders["sd"]), resolution=32)
    assert adapter.latent_shape == (4, 16, 16) and predict(adapter).shape == (2, 4, 16, 16)
    assert adapter.decode(torch.zeros(1, 4, 16, 16)).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("tune, ema", [("lora", None), ("lora", 0.5), ("full", None)])
def test_an_iteration_of_a_run_is_that_of_its_checkpoint(trainer, tune, ema):
    settings = {"model": {"tune": tune}, "optim": {"learning_rate": 1e-2, "ema_decay": ema}}
    kept = {}
    for iterations in (1, 2):
        it = trainer(**settings, train={"iterations": iterations}, run={"checkpoint_every": 1}, resume=iterations == 2)
        run(it)
        with it.state.averaged():
            kept[iterations] = predict(it.adapter)
    for _ in ("saved evaluations", "checkpoints"):
        for iterations, expected in kept.items():
            assert torch.equal(predict(load_for_sampling(f"{it.folder}@{iterations}")), expected)
        shutil.rmtree(it.folder / "evaluations", ignore_errors=True)
    assert not torch.equal(kept[1], kept[2])
    with pytest.raises(RunFolderError, match=r"no weights of iteration 7 -> kept: 1, 2;"):
        load_for_sampling(f"{it.folder}@7")
