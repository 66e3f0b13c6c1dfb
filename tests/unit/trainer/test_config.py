from __future__ import annotations

import pytest
import yaml

from pcpo.errors import ConfigError
from pcpo.trainer.config import Config
from pcpo.trainer.configfile import describe, dump_config, load_config, parse_yaml, preset_names, validate

PRESETS = preset_names()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_validate_and_read_back_equal(name, tmp_path):
    config = load_config(name)
    for number, text in enumerate((dump_config(config), describe(config))):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text, "utf-8")
        assert load_config(path) == config
    assert text.count("#") >= 10


def test_the_methods_of_the_comparison_are_there():
    methods = {"ddpo", "flow_grpo", "dance_grpo", "tempflow_grpo", "grpo_guard", "pcpo_sd", "pcpo_sd3", "demo"}
    assert methods <= set(PRESETS)


def test_texts_that_look_like_something_else_read_back_equal(tmp_path):
    texts = ["1e-4", "1e4", "-2E+8", "null", "yes", "# no comment", "a: b", "[x", "'", "12:30:45", "x" * 300]
    config = validate({"name": "1e4", "prompts": texts, "reward": [{"name": "own.py:f", "options": {"k": "1e-3"}}]})
    for text in (dump_config(config), describe(config)):
        path = tmp_path / "config.yaml"
        path.write_text(text, "utf-8")
        assert load_config(path) == config


def test_yaml_numbers_with_an_exponent_are_numbers():
    assert parse_yaml("{a: 1e-4, b: 3E2, c: -1.e5, d: '1e-4', e: 1e}", "") == {
        "a": 1e-4,
        "b": 300.0,
        "c": -1e5,
        "d": "1e-4",
        "e": "1e",
    }


def test_overrides_are_laid_on_the_preset():
    config = load_config(
        "flow_grpo",
        ["kl.beta=0.04", "sampler.steps=8", "prompts=[a, b]", "reward=jpeg_compressibility", "sampler.eta=1e-1"],
    )
    assert (config.kl.form, config.kl.beta, config.sampler.steps, config.sampler.eta) == ("rate", 0.04, 8, 0.1)
    assert config.prompts == ["a", "b"] and [part.name for part in config.reward] == ["jpeg_compressibility"]


def test_a_file_may_start_from_a_preset(tmp_path):
    path = tmp_path / "own.yml"
    path.write_text("preset: pcpo_sd3\nname: own\nsampler: {steps: 7}\n", "utf-8")
    config, base = load_config(path), load_config("pcpo_sd3")
    assert config.name == "own" and config.sampler.steps == 7
    assert config.credit == base.credit and config.sampler.eta == base.sampler.eta


def test_rewards_in_short():
    parts = validate({"reward": ["colorfulness", {"name": "jpeg_compressibility", "weight": 0.5}]}).reward
    assert [(part.name, part.weight) for part in parts] == [("colorfulness", 1.0), ("jpeg_compressibility", 0.5)]


@pytest.mark.parametrize(
    "source, words",
    [
        ("pcpo_sdd", "did you mean pcpo_sd?"),
        ("entirely else", "pcpo presets lists them"),
        ("absent.yaml", "no such file"),
        ("/", "no preset of this name"),
        ("a\0b", "no preset of this name"),
    ],
)
def test_unknown_sources(source, words):
    with pytest.raises(ConfigError) as caught:
        load_config(source)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "text, words",
    [
        ("a: 1\na: 2", "key 'a' is given twice"),
        ("train: {updates: 1, updates: 2}", "key 'updates' is given twice"),
        ("a: &x [1]\nb: *x", "aliases are not allowed"),
        ("a: {<<: {b: 1}}", "not valid YAML"),
        ("- a\n- b", "expected settings by name, got list"),
        ("just text", "got str"),
        ("a: [1", "not valid YAML"),
        ("1: 2", "key 1 is not text"),
        ("[a, b]: 2", "not text"),
        ("{a: b}: 2", "not text"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("x: 2001-13-45", "not valid YAML"),
        ("a: " + "[" * 5000, "not valid YAML"),
        ("preset: pcpo", "did you mean pcpo_sd"),
        ("preset: [pcpo_sd]", "is not a preset"),
    ],
)
def test_files_that_are_not_settings(tmp_path, text, words):
    path = tmp_path / "broken.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert words in message and "\n" not in message and "broken.yaml" in message


def test_a_file_that_is_not_text_or_too_large(tmp_path):
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(path)
    path.write_bytes(b"#" * (1 << 20) + b"#")
    with pytest.raises(ConfigError, match="larger than"):
        load_config(path)


@pytest.mark.parametrize(
    "assignment, words",
    [
        ("optim.learning_rate", "expected KEY=VALUE"),
        ("=1", "expected KEY=VALUE"),
        ("optim.learnin_rate=1", "unknown key optim.learnin_rate; did you mean learning_rate?"),
        ("optimm.learning_rate=1", "unknown key optimm; did you mean optim?"),
        ("model.lora.rnk=2", "unknown key model.lora.rnk; did you mean rank?"),
        ("reward=[{nam: x}]", "did you mean name?"),
        ("a..b=1", "unknown key a"),
        ("train.updates=one", "train.updates"),
        ("train.updates=1.5", "train.updates"),
        ("train=5", "train"),
        ("sampler.name=dim", "sampler.name"),
        ("sampler.steps=[1", "not valid YAML"),
        ("run.seed=-1", "run.seed"),
        ("run.seed=4294967296", "run.seed"),
        ("optim.learning_rate=.nan", "optim.learning_rate"),
        ("optim.learning_rate=.inf", "optim.learning_rate"),
        ("reward=[{name: colorfulness, weight: .inf}]", "reward.0.weight"),
        ("name=a/b", "name"),
        ("name=..", "name"),
        ("objective.clip_range=1", "clip_range"),
    ],
)
def test_overrides_that_are_refused(assignment, words):
    with pytest.raises(ConfigError) as caught:
        load_config("pcpo_sd", [assignment])
    message = str(caught.value)
    assert words in message and "\n" not in message and caught.value.exit_code == 2


@pytest.mark.parametrize(
    "preset, assignments, words",
    [
        ("pcpo_sd", ["batch.group_size=1"], "a group of one always has advantage 0"),
        ("pcpo_sd", ["train.updates=7"], "train.updates 7 does not divide the 48 pictures"),
        ("pcpo_sd", ["batch.rollout=5"], "batch.rollout 5 does not divide the 48 pictures"),
        ("pcpo_sd", ["sampler.eta=0"], "deterministic"),
        ("pcpo_sd", ["sampler.eta=1.5"], "out of range"),
        ("pcpo_sd", ["train.select=first", "train.fraction=0.01"], "nothing to train"),
        ("pcpo_sd", ["train.fraction=0.5"], "needs train.select"),
        ("pcpo_sd", ["sampler.stochastic=trained"], "needs train.select"),
        ("pcpo_sd3", ["train.within=[0,0.5]"], "train.within goes with train.select=all"),
        ("pcpo_sd", ["train.within=[0.5,0.2]"], "two ascending numbers"),
        ("pcpo_sd", ["train.within=[0.5,1.2]"], "two ascending numbers"),
        ("pcpo_sd", ["train.within=[0.5,0.52]"], "of 10 steps is no step"),
        ("pcpo_sd", ["credit.schedule=proportional"], "proportional is for flow"),
        ("pcpo_sd3", ["credit.apply=lambda"], "defined for DDIM only"),
        ("pcpo_sd3", ["credit.apply=variance"], "defined for DDIM only"),
        ("pcpo_sd", ["credit.schedule=guard"], "cannot act by matching"),
        ("pcpo_sd", ["credit.apply=loss"], "not of the loss"),
        ("pcpo_sd", ["credit.floor=0.5"], "credit.floor is for credit.schedule=adaptive"),
        ("pcpo_adaptive", ["credit.apply=loss"], "not of the loss"),
        ("pcpo_adaptive", ["credit.apply=lambda"], "equal weights"),
        ("pcpo_adaptive", ["batch.prompts=1"], "two halves of the prompts"),
        ("pcpo_adaptive", ["kl.form=rate", "kl.beta=0.01"], "would mix"),
        ("pcpo_adaptive", ["credit.floor=0"], "greater than 0"),
        ("pcpo_sd", ["objective.name=ppo_clip"], "objective.name must be matching"),
        ("ddpo", ["objective.quadratic=false"], "objective.quadratic"),
        ("ddpo", ["objective.name=reinforce"], "on-policy for one update"),
        ("pcpo_sd", ["kl.beta=0.1"], "kl.form is none"),
        ("pcpo_sd", ["sampler.shift=3"], "ideal flow grid"),
        ("pcpo_sd", ["sampler.grid=ideal"], "sampler.grid"),
        ("pcpo_sd", ["reward=[]"], "at least one reward"),
        ("ddpo", ["advantage.min_count=40"], "min_count"),
    ],
)
def test_settings_that_make_no_sense_together(preset, assignments, words):
    with pytest.raises(ConfigError) as caught:
        load_config(preset, assignments)
    message = str(caught.value)
    assert words in message and "\n" not in message


def test_one_picture_a_group_is_fine_with_running_statistics():
    assert load_config("ddpo", ["batch.group_size=1", "batch.prompts=4"]).pictures == 4


def test_every_field_says_what_it_is():
    """The descriptions are the reference of the settings."""

    def undocumented(model, place=""):
        for name, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and hasattr(inner, "model_fields"):
                yield from undocumented(inner, f"{place}{name}.")
            elif not field.description:
                yield f"{place}{name}"

    assert list(undocumented(Config)) == []


def test_the_description_is_yaml_with_a_comment_per_setting():
    text = describe(load_config("demo"))
    assert yaml.safe_load(text)["optim"]["learning_rate"] == 3e-3
    assert "  learning_rate: 0.003  # " in text


def test_a_key_of_odd_characters_is_shown_on_one_short_line():
    for key in ("a\n\nb", "\x1b[2J", "x" * 10_000):
        with pytest.raises(ConfigError) as caught:
            validate({key: 1})
        assert "unknown key" in caught.value.what and caught.value.what.isprintable() and len(caught.value.what) < 500
