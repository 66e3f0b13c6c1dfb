"""Quality at matched reward on runs of tiny pipelines, and `pcpo eval` on them."""

from __future__ import annotations

import json

import pytest

from pcpo.data.prompts import load_prompts
from pcpo.errors import EvaluationError, ModelError, RunFolderError
from pcpo.evaluation.command import Request, run
from pcpo.evaluation.compare import Comparer, Sampling, check_source
from pcpo.evaluation.features import OwnFeatures
from pcpo.evaluation.matched import find_match, quality_at_matched_reward, saved_weights
from pcpo.evaluation.sampling import load_for_sampling, sample_images
from pcpo.models.lora import save_tuned
from pcpo.observe.events import read_events


def means(images):
    return images.float().mean((2, 3))


MEANS = OwnFeatures("means", means)


@pytest.fixture
def finished(trainer):
    """A run of 2 iterations, evaluated at 0, 1, 2, checkpoints at each, weights of 1 saved beside its evaluation."""
    job = trainer(
        output="run",
        train={"iterations": 2},
        evaluation={"every": 1},
        run={"checkpoint_every": 1},
        optim={"learning_rate": 1e-2},
    )
    job.train()
    return job.folder


def set_rewards(folder, rewards):
    """Give the evaluations of a log other rewards."""
    path = folder / "events.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    values = iter(rewards)
    for line in lines:
        if line["type"] == "evaluation":
            line["reward_mean"] = next(values)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def comparer(prompts=("red", "green"), **changes):
    sampling = Sampling(load_prompts(list(prompts)), count=2, steps=2, guidance_scale=1.0)
    return Comparer(sampling, [MEANS], **changes)


def test_the_first_saved_weights_that_reach_the_target(finished):
    set_rewards(finished, [0.0, 2.0, 1.0])
    assert saved_weights(finished) == {1: finished / "checkpoints/000001", 2: finished}
    match = find_match(finished, 1.5)
    assert (match.iteration, match.reached, match.reward) == (1, 1, 2.0)
    assert find_match(finished, 2.5) is None
    set_rewards(finished, [5.0, 0.0, 1.0])  # the first one above has no weights: they are the base model's
    match = find_match(finished, 1.0)
    assert (match.iteration, match.reached, match.weights) == (2, 0, finished)


def test_weights_beside_an_evaluation_come_before_a_checkpoint(finished):
    job = load_for_sampling(str(finished))
    (finished / "evaluations/000001").mkdir(parents=True)
    assert saved_weights(finished)[1] == finished / "checkpoints/000001"  # the new folder is still empty
    save_tuned(job, finished / "evaluations/000001", "lora")
    assert saved_weights(finished)[1] == finished / "evaluations/000001"
    set_rewards(finished, [0.0, 2.0, 3.0])
    made = comparer()
    (matched,) = quality_at_matched_reward([finished], 2.0, made)
    # what was saved there are the weights of the finished run
    assert matched.training.features == made.evaluate(str(finished)).features
    assert matched.match.weights.name == "000001" and matched.held_out is None and matched.best == 3.0


def test_checkpoints_count_too_and_each_is_its_own_iteration(finished):
    set_rewards(finished, [0.0, 2.0, 3.0])
    made = comparer()
    (matched,) = quality_at_matched_reward([finished], 2.0, made, comparer(["blue"]))
    assert matched.training.features == made.evaluate(f"{finished}@1").features
    assert matched.training.features != made.evaluate(str(finished)).features
    assert (matched.training.pictures, matched.held_out.pictures) == (4, 2)


def test_distance_to_the_base_model(finished):
    made = comparer()
    base, tuned = made.evaluate_base(_config(finished)), made.evaluate(str(finished))
    assert base.features[0].distances[0].kernel == 0
    assert base.features[0].distances[0].frechet == pytest.approx(0, abs=1e-6)
    assert tuned.features[0].distances[0].frechet > 1e-3
    assert tuned.features[0].distances[0].reference == base.name


def _config(folder):
    return check_source(str(folder))


def test_runs_that_cannot_be_matched(finished, tmp_path):
    with pytest.raises(EvaluationError, match="no run reaches 1e"):
        quality_at_matched_reward([finished], 1e6, comparer())
    with pytest.raises(RunFolderError, match="is no run folder"):
        quality_at_matched_reward([tmp_path / "absent"], 0.0, comparer())
    with pytest.raises(ModelError, match="no such folder"):
        check_source("./absent")
    (finished / "lora").rename(finished / "elsewhere")
    with pytest.raises(RunFolderError, match="no tuned weights yet"):
        check_source(str(finished))


def test_a_reference_of_real_pictures(finished, tmp_path):
    adapter = load_for_sampling(str(finished))
    prompts = load_prompts(["red", "green"])
    sample_images(adapter, prompts, count=2, steps=2, guidance_scale=1.0, seed=0, output=tmp_path / "real")
    made = comparer(references=[str(tmp_path / "real"), "base"])
    real, base = made.evaluate(str(finished)).features[0].distances
    # what `pcpo sample` wrote and what is measured are the same pictures
    assert real.kernel == 0 and base.kernel != 0
    folder = made.evaluate(str(tmp_path / "real"))
    assert folder.prompts == 2 and folder.pictures == 4
    assert [d.reference for d in folder.features[0].distances] == [str(tmp_path / "real"), base.reference]


def test_the_command_writes_what_it_prints(finished, tmp_path, capsys):
    set_rewards(finished, [0.0, 2.0, 3.0])
    request = Request([str(finished)], count=2, steps=2, rewards=["colorfulness"], output=tmp_path / "out.json")
    document = run(request)
    printed = capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text()) == document
    assert [e["name"] for e in document["evaluations"]][1] == str(finished)
    assert document["sampling"]["prompts"] == ["red", "a blue boat", "green tree"]
    assert document["sampling"]["guidance_scale"] == 3.0
    assert all(words in printed for words in ("emoji_clip, 128 dimensions", "colorfulness", "colour", "* not more"))

    (tmp_path / "other.txt").write_text("red\nyellow\npink\n")
    request = Request([str(finished)], count=1, steps=2, target=2.5, held_out=str(tmp_path / "other.txt"), rewards=[])
    document = run(request)
    printed = capsys.readouterr().out
    assert document["held_out"]["prompts"] == ["yellow", "pink"] and document["runs"][0]["match"]["iteration"] == 2
    assert "training prompts" in printed and "held-out prompts" in printed and "reward of 2.5 or more" in printed
    assert len(read_events(finished / "events.jsonl").evaluations) == 3


def test_a_base_model_that_is_a_source_is_measured_once_and_in_its_place(finished):
    base = _config(finished).model.path
    for sources in ([base, str(finished)], [str(finished), base]):
        request = Request(sources, count=1, steps=2, rewards=[], quiet=True)
        rows = run(request)["evaluations"]
        assert [row["name"] for row in rows] == sources
        frechet = {row["name"]: row["features"][0]["distances"][0]["frechet"] for row in rows}
        assert frechet[base] == pytest.approx(0, abs=1e-6) and frechet[str(finished)] > 1e-6


def test_sampling_does_not_depend_on_the_batch(finished):
    adapter = load_for_sampling(str(finished))
    sets = [
        Sampling(load_prompts(["red", "green"]), count=3, steps=2, batch=batch).pictures("x", adapter).images
        for batch in (2, 16)
    ]
    assert (sets[0].int() - sets[1].int()).abs().max() <= 1
    with pytest.raises(EvaluationError, match="one picture is no set"):
        Sampling(load_prompts(["red"]), count=1)
