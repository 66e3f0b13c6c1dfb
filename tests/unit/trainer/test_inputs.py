"""Several rewards, held-out rewards and held-out prompts in a run."""

from __future__ import annotations

import io

import pytest
import torch

from pcpo.errors import ConfigError, PromptError, RewardError
from pcpo.observe.console import Console
from pcpo.observe.report import write_report
from pcpo.trainer.configfile import validate
from pcpo.trainer.inputs import check_rewards, make_rewards, prompt_sets
from training import run, same, weights

TWO = [{"name": "colorfulness", "weight": 1.0}, {"name": "jpeg_incompressibility", "weight": 0.2}]


@pytest.fixture
def mixed(trainer, monkeypatch):
    """mixed(mix): a trainer on two rewards from the configuration."""

    def make(mix, **changes):
        import training

        base = training.settings
        monkeypatch.setattr(
            training, "settings", lambda *a, **c: {**base(*a, **c), "reward": TWO, "reward_mix": mix, **changes}
        )
        return trainer(reward=None, output=mix, train={"iterations": 2})

    return make


def test_mixes_train_differently_and_log_each_part(mixed):
    trained = {}
    for mix in ("weighted_sum", "normalised", "advantages"):
        job = mixed(mix)
        log = run(job)
        trained[mix] = weights(job)
        for row in log.iterations:
            assert set(row.rewards) == {"colorfulness", "jpeg_incompressibility"}
            raw = row.rewards["colorfulness"] + 0.2 * row.rewards["jpeg_incompressibility"]
            assert row.reward_mean == pytest.approx(raw, rel=1e-5)
    assert not same(trained["weighted_sum"], trained["normalised"])
    assert not same(trained["normalised"], trained["advantages"])


def test_held_out_rewards_are_measured_and_never_trained_on(trainer, tmp_path):
    evaluation = {"rewards": ["colorfulness", "jpeg_compressibility"], "every": 1}
    plain, watched = trainer(output="plain"), trainer(output="watched", evaluation=evaluation)
    run(plain)
    log = run(watched)
    assert same(weights(plain), weights(watched))
    first, last = log.evaluations[0], log.evaluations[-1]
    assert set(first.held_out) == {"colorfulness", "jpeg_compressibility"} and set(first.rewards) == {"reddish"}
    assert first.held_out != last.held_out and all(value is not None for value in last.held_out.values())

    page = write_report(watched.folder).read_text("utf-8")
    assert "<h3>Held-out jpeg_compressibility</h3>" in page
    assert "Held-out" not in write_report(plain.folder).read_text("utf-8")
    shown = io.StringIO()
    Console(file=shown).evaluation(last.model_dump())
    assert "; held out: colorfulness " in shown.getvalue()


def config(**changes):
    return validate({"prompts": [f"prompt {n}" for n in range(40)], **changes})


def test_held_out_prompts_are_evaluated_and_not_trained_on():
    train, held = prompt_sets(config(held_out=0.25))
    assert len(train) + len(held) == 40 and not {p.text for p in train} & {p.text for p in held}
    same_again = prompt_sets(config(held_out=0.25, run={"seed": 5}))
    assert same_again == (train, held)
    assert prompt_sets(config())[0] == prompt_sets(config())[1]
    assert [p.text for p in prompt_sets(config(evaluation={"prompts": ["x"]}))[1]] == ["x"]


def test_senseless_choices_are_refused():
    with pytest.raises(
        ConfigError, match=r"held_out keeps prompts for evaluation, and evaluation.prompts names others"
    ):
        config(held_out=0.1, evaluation={"prompts": ["x"]})
    with pytest.raises(ConfigError, match="reward_mix normalised: a group of one has no spread"):
        config(reward_mix="normalised", batch={"group_size": 1}, advantage={"name": "running"})
    with pytest.raises(PromptError, match=r"held_out 0.001 of 40 prompts leaves none to hold out"):
        prompt_sets(config(held_out=0.001))
    with pytest.raises(ConfigError, match=r"evaluation.rewards.0.weights; did you mean weight"):
        config(evaluation={"rewards": [{"name": "ocr", "weights": 1}]})


@pytest.mark.parametrize("place", ["reward", "evaluation"])
def test_prompts_without_a_target_are_refused_for_ocr(place):
    pytest.importorskip("rapidocr", reason="needs the extra ocr")
    settings = {"reward": "ocr"} if place == "reward" else {"evaluation": {"rewards": ["ocr"]}}
    for look in (check_rewards, lambda c, p: make_rewards(c, None, p)):
        with pytest.raises(PromptError, match=r"prompt 'prompt 0': no text to read"):
            look(config(**settings), prompt_sets(config())[0])


def test_a_reward_of_ones_own_may_refuse_prompts_too(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "class Fussy:\n"
        "    def __call__(self, images, prompts, metadata):\n        return [0.0] * len(prompts)\n"
        "    def check_prompts(self, prompts):\n        prompts[0].metadata['count']\n"
    )
    chosen = config(reward=f"{path}:Fussy")
    for look in (check_rewards, lambda c, p: make_rewards(c, None, p)):
        with pytest.raises(RewardError, match=r"check_prompts raised KeyError: 'count'"):
            look(chosen, prompt_sets(chosen)[0])
    with pytest.raises(RewardError, match="check_prompts raised"):
        make_rewards(config(), _fussy(path), prompt_sets(chosen)[0])


def _fussy(path):
    from pcpo.rewards import load_reward

    return load_reward(f"{path}:Fussy")


def test_a_held_out_reward_that_judges_nothing_is_null(trainer):
    from pcpo.trainer.evaluate import Evaluator
    from pcpo.types import RewardResult

    def never(images, prompts, metadata):
        return RewardResult(torch.zeros(len(prompts)), torch.zeros(len(prompts), dtype=torch.bool))

    job = trainer(evaluation={"rewards": ["colorfulness"]})
    assert isinstance(job.evaluator, Evaluator)
    job.evaluator.held_out.parts[0] = ("never", never, 1.0)
    assert run(job).evaluations[0].held_out == {"never": None}
