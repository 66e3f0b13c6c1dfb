"""Implicit Reward Guidance: f~ = f_ref + sum_k lambda_k (f_k - f_ref), and what follows from it."""

from __future__ import annotations

import pytest
import torch

from pcpo.data.prompts import Prompt
from pcpo.errors import ConfigError, ModelError, RunFolderError
from pcpo.evaluation.guidance import load_guidance, parse_term
from pcpo.evaluation.sampling import load_base, load_for_sampling, run_config, sample_set
from pcpo.models.lora import add_lora, save_tuned
from pcpo.trainer import runfolder
from pcpo.trainer.configfile import validate
from training import FAMILIES, scramble, settings

SIZE = {"lora": 0.1, "full": 0.01}


@pytest.fixture(scope="module")
def runs(folders, tmp_path_factory):
    """(family, "a", "b" or "full") -> the folder of a run: two LoRAs of different rank, and a full fine-tuning."""
    parent = tmp_path_factory.mktemp("runs")
    made = {}
    for family in FAMILIES:
        for name, tune, rank in (("a", "lora", 2), ("b", "lora", 3), ("full", "full", 1)):
            folder = parent / f"{family}-{name}"
            model = {"tune": tune, "lora": {"rank": rank, "alpha": 5.0, "targets": None}}
            config = validate(settings(family, folders[family], folder, model=model))
            runfolder.create(folder, config)
            adapter = load_base(config)
            if tune == "lora":
                add_lora(adapter, rank, 5.0)
            else:
                adapter.unwrapped.requires_grad_(True)
            scramble(adapter, SIZE[tune] * rank)
            save_tuned(adapter, folder, tune)
            made[family, name] = str(folder)
    return made


def predictor(adapter, guidance_scale=3.0):
    """A function of nothing that predicts fixed latents with the adapter as it then is."""
    x = torch.randn(2, *adapter.latent_shape, generator=torch.Generator().manual_seed(1))
    cond = adapter.encode(["red", "a blue boat"])
    timestep, index = torch.tensor([500.0, 20.0]), torch.tensor([0, 1])

    def predict():
        with torch.no_grad():
            return adapter.predict(x, timestep, cond, index, guidance_scale)

    return predict


def alone(source, guidance_scale=3.0):
    return predictor(load_for_sampling(source), guidance_scale)()


def base_of(run):
    return predictor(load_base(run_config(run)))()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_weight_is_the_base_and_one_is_the_tuned_model_bit_for_bit(runs, family):
    names = ["a", "b", "full"]
    sources = [runs[family, name] for name in names]
    guidance = load_guidance(sources[0], [(source, 0.0) for source in sources])
    predict = predictor(guidance.adapter)
    base = base_of(sources[0])
    assert torch.equal(guidance.mix(predict), base)
    for place, source in enumerate(sources):
        guidance.weights = {f"net_{k}": float(k == place) for k in range(3)}
        assert torch.equal(guidance.mix(predict), alone(source)), names[place]
        assert torch.equal(predict(), base), "the adapter is not left as the base"
    assert not torch.allclose(alone(sources[0]), base, atol=1e-3)


@pytest.mark.parametrize("weights", [(0.7, 1.2, 0.0), (-0.5, 0.3, 2.0), (0.5, 0.5, 0.0), (3.0, 0.0, -1.0)])
@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_it_is_its_formula_on_nets_loaded_one_by_one(runs, family, weights):
    sources = [runs[family, name] for name in ("a", "b", "full")]
    guidance = load_guidance(sources[1], list(zip(sources, weights, strict=True)))
    base = base_of(sources[0])
    expected = base + sum(weight * (alone(source) - base) for source, weight in zip(sources, weights, strict=True))
    torch.testing.assert_close(guidance.mix(predictor(guidance.adapter)), expected, rtol=1e-4, atol=1e-4)


def test_each_net_has_its_own_classifier_free_guidance(runs):
    """cfg(f~) of the mixed halves equals the mix of each net's cfg, and differs from guiding with one net's halves."""
    source, scale = runs["sd", "a"], 4.0
    guidance = load_guidance(source, [(source, 1.7)])
    predict = predictor(guidance.adapter, scale)
    base, tuned = predictor(load_base(run_config(source)), scale)(), alone(source, scale)
    torch.testing.assert_close(guidance.mix(predict), base + 1.7 * (tuned - base), rtol=1e-4, atol=1e-4)


def test_it_is_affine_in_a_weight_beyond_one(runs):
    guidance = load_guidance(runs["sd", "a"], [(runs["sd", "a"], 0.0), (runs["sd", "b"], 0.4)])
    predict = predictor(guidance.adapter)

    def at(weight):
        guidance.weights["net_0"] = weight
        return guidance.mix(predict)

    step = at(1.0) - at(0.0)
    torch.testing.assert_close(at(2.5) - at(1.0), 1.5 * step, rtol=1e-4, atol=1e-4)
    assert step.abs().max() > 1e-2


def test_the_order_and_repetition_of_runs_do_not_matter(runs):
    a, b = runs["sd", "a"], runs["sd", "b"]
    results = [
        (guidance := load_guidance(a, terms)).mix(predictor(guidance.adapter))
        for terms in ([(a, 0.8), (b, 0.6)], [(b, 0.6), (a, 0.8)], [(a, 0.5), (b, 0.6), (a, 0.3)])
    ]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-4)


def test_a_net_without_weight_is_not_called(runs):
    guidance = load_guidance(runs["sd", "a"], [(runs["sd", "a"], 0.0), (runs["sd", "b"], 1.0)])
    called = []
    with torch.no_grad():
        guidance.mix(lambda: called.append(guidance.adapter.unwrapped.active_adapters()) or torch.zeros(1))
    assert called == [["net_1"]]


def test_pictures_are_those_of_the_base_and_of_the_tuned_model(runs):
    a, b = runs["sd", "a"], runs["sd", "b"]

    def draw(adapter, **options):
        return sample_set(
            adapter, [Prompt("red"), Prompt("boat")], count=2, steps=3, guidance_scale=3.0, seed=0, **options
        )

    guidance = load_guidance(a, [(a, 1.0), (b, 0.0)])
    assert torch.equal(draw(guidance.adapter, make_policy=guidance.make_policy), draw(load_for_sampling(a)))
    guidance.weights = {"net_0": 0.0, "net_1": 0.0}
    pictures = draw(guidance.adapter, make_policy=guidance.make_policy)
    assert torch.equal(pictures, draw(load_base(run_config(a)))) and not torch.equal(
        pictures, draw(load_for_sampling(a))
    )


def test_what_does_not_fit_is_refused_before_loading(runs, folders, tmp_path, monkeypatch):
    from pcpo.evaluation import sampling

    def loaded(*arguments):
        pytest.fail("a model was loaded")

    monkeypatch.setattr(sampling, "load_adapter", loaded)
    run = runs["sd", "a"]
    for error, words, source, terms in [
        (ModelError, "was tuned from .*sd3.*, not from", run, [(run, 1.0), (runs["sd3", "a"], 1.0)]),
        (ModelError, "was tuned from", str(folders["sd_v"]), [(run, 1.0)]),
        (RunFolderError, "is not a run folder -> write RUN=WEIGHT", run, [(str(tmp_path), 1.0)]),
        (ConfigError, "is weighted by nan", run, [(run, float("nan"))]),
    ]:
        with pytest.raises(error, match=words):
            load_guidance(source, terms)


def test_a_base_is_the_same_by_any_path(runs, folders, monkeypatch):
    monkeypatch.chdir(folders["sd"].parent)
    assert load_guidance("./sd", [(runs["sd", "a"], 1.0)]).weights == {"net_0": 1.0}


def test_terms():
    assert parse_term("runs/a=b@20=-0.5") == ("runs/a=b@20", -0.5)
    for text in ("runs/a", "=1", "runs/a=", "runs/a=x"):
        with pytest.raises(ConfigError, match="is not RUN=WEIGHT"):
            parse_term(text)
