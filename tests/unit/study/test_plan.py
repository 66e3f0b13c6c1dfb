"""The study file: layers, names, order, filters, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcpo.errors import ConfigError, PCPOError
from pcpo.study.plan import Study, load_study, make_cells, narrow, nested
from pcpo.study.runner import check
from pcpo.trainer.configfile import load_config


def study(**changes):
    data = {"name": "s", "models": {"sd": {"preset": "pcpo_sd"}}, "rewards": {"colorfulness": None}, "seeds": [0]}
    return Study.model_validate({"arms": {"a": None}, **data, **changes})


def cells(**changes):
    return make_cells(study(**changes), Path("out"))


def test_a_cell_is_the_run_that_train_would_make():
    (cell,) = cells(arms={"a": {"set": {"credit.schedule": "native", "objective": {"name": "log_hinge"}}}}, seeds=[7])
    overrides = ["name=a", "run.seed=7", f"run.output={cell.folder}", "reward=colorfulness"]
    overrides += ["credit.schedule=native", "objective.name=log_hinge"]
    assert cell.config == load_config("pcpo_sd", overrides)
    assert cell.name == "sd--colorfulness--a--7" and cell.folder == Path("out/cells/sd--colorfulness--a--7")


def test_a_set_beats_every_preset_and_the_arm_beats_all():
    both = {"optim.learning_rate": 1e-4, "train.updates": 1}
    base = {"preset": "demo", "set": both}
    arms = {"own": {"preset": "ddpo", "set": ["train.updates=4"]}, "plain": None}
    own, plain = cells(base=base, models={"m": {"path": "emoji-sd", "set": {"sampler.steps": 5}}}, arms=arms)
    assert own.config.advantage.name == "running" and plain.config.advantage.name == "grpo"
    assert own.config.optim.learning_rate == plain.config.optim.learning_rate == 1e-4
    assert (own.config.train.updates, plain.config.train.updates) == (4, 1)
    assert own.config.sampler.steps == plain.config.sampler.steps == 5


def test_the_difference_from_the_baseline_is_only_what_the_arm_sets():
    arms = {"a": {"set": {"credit.schedule": "native", "objective.name": "ppo_clip"}}, "b": None}
    a, b = cells(arms=arms, baseline="b", seeds=[3])
    assert b.difference == {}
    assert a.difference == {
        "credit.schedule": ("uniform", "native"),
        "objective.name": ("matching", "ppo_clip"),
    }


def test_seeds_are_outermost_unless_ordered_otherwise():
    arms = {"a": None, "b": None}
    assert [(c.seed, c.arm) for c in cells(arms=arms, seeds=[0, 1])] == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]
    other = cells(arms=arms, seeds=[0, 1], order=["arm", "seed", "model", "reward"])
    assert [(c.seed, c.arm) for c in other] == [(0, "a"), (1, "a"), (0, "b"), (1, "b")]


def test_filters_and_arms_of_a_model():
    models = {"m1": {"preset": "pcpo_sd"}, "m2": {"preset": "pcpo_sd3", "arms": ["b"]}}
    arms = {"a": None, "b": None}
    found = cells(models=models, arms=arms, seeds=[0, 1], skip=[{"model": ["m1"], "seed": [1]}])
    assert [(c.model, c.arm, c.seed) for c in found] == [("m1", "a", 0), ("m1", "b", 0), ("m2", "b", 0), ("m2", "b", 1)]
    assert all(c.difference == {} for c in found if c.model == "m2")
    only = cells(models=models, arms=arms, seeds=[0, 1], only=[{"model": ["m2"]}, {"seed": [1], "arm": ["a"]}])
    assert [(c.model, c.arm, c.seed) for c in only] == [("m2", "b", 0), ("m1", "a", 1), ("m2", "b", 1)]
    with pytest.raises(ConfigError, match="no cell is left"):
        cells(skip=[{"seed": [0]}])


def test_a_runner_takes_only_the_cells_that_it_is_told():
    whole = study(arms={"a": None, "b": None}, seeds=[0, 1, 10])
    every = make_cells(whole, Path("out"))
    assert narrow(whole, every, []) == every
    assert [(c.arm, c.seed) for c in narrow(whole, every, ["seed=1,10", "arm=b"])] == [("b", 1), ("b", 10)]
    for text, message in (
        ("seed", "'seed' is no filter -> write AXIS=VALUE,VALUE"),
        ("sede=1", "'sede=1' is no filter"),
        ("arm=", "'arm=' is no filter"),
        ("arm=c", "unknown arm of this study 'c'"),
        ("seed=2", "unknown seed of this study '2'"),
    ):
        with pytest.raises(ConfigError, match=message):
            narrow(whole, every, [text])
    with pytest.raises(ConfigError, match="no cell is left"):
        narrow(whole, every, ["seed=1", "seed=10"])


def test_settings_are_read_from_lists_and_dotted_keys():
    assert nested(["a.b=1e-4", "a.c=[x]"]) == {"a": {"b": 1e-4, "c": ["x"]}}
    assert nested({"a.b": 1, "a": {"c.d": 2}}) == {"a": {"b": 1, "c": {"d": 2}}}


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("arms:", "arm:", "unknown key arm; did you mean arms?"),
        ("pcpo:\n", "pcpo: {sett: []}\n", "unknown key arms.pcpo.sett; did you mean set?"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "seeds: one is given twice"),
        ("seeds: [0, 1]", "seeds: []", "seeds:"),
        ("seeds: [0, 1]", "seeds: [0]\nbaseline: pcqo", "baseline: no arm 'pcqo' here; known: native, pcpo"),
        ("seeds: [0, 1]", "seeds: [0]\nskip: [{reward: [jpeg]}]", "skip: no reward 'jpeg'"),
        ("seeds: [0, 1]", "seeds: [0]\norder: [seed, arm]", "order: give each of seed, model, reward, arm once"),
        ("pcpo:\n", "pc--po:\n", "arms.pc--po"),
        ("pcpo:\n", "pcpo: {set: {run.seed: 3}}\n", "run.seed is set by the study itself"),
        ("{{colorfulness: }}".format(), "[colorfulness]", "rewards"),
    ],
)
def test_a_broken_file_is_one_line(study_file, old, new, said):
    path = study_file((old, new))
    with pytest.raises(ConfigError) as error:
        load_study(path)
    assert said in str(error.value) and "study.yaml" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("credit.schedule=native", "credit.shedule=native", "unknown key credit.shedule; did you mean schedule?"),
        ("objective.name=ppo_clip", "train.updates=3", "does not divide"),
        ("{colorfulness: }", "{colourfulness: }", "did you mean 'colorfulness'?"),
        ("prompts: [red, a blue boat]", "prompts: absent.txt", "no such file"),
        ("sampler.steps: 3", "sampler: {name: flow_sde, steps: 3}", "flow_sde samples flow models"),
        ("models: {m: }", "models: {m: {path: ./absent}}", "no such folder"),
    ],
)
def test_a_broken_cell_is_refused_by_name_before_anything_is_made(study_file, tmp_path, old, new, said):
    path = study_file((old, new))
    with pytest.raises(PCPOError) as error:
        check(make_cells(load_study(path), tmp_path / "out"), tmp_path / "out")
    assert said in str(error.value) and "cell m--" in str(error.value)
    assert not (tmp_path / "out").exists()
