"""Files from a stranger: an error of ours, within seconds and bounded memory, and nothing in them runs."""

from __future__ import annotations

import random

import pytest

from security.places import COMMAND, GROUPS, RUN_STUDY, Cases, copy

SECONDS, MIB = 5.0, 1024
SHARE = 0.04  # of the cases in the default tests


@pytest.fixture(scope="session")
def study(worker, folders, tmp_path_factory):
    """A finished study of one cell."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.yaml").write_text(RUN_STUDY.format(model=folders["sd"]), "utf-8")
    words = ("study", "run", folder / "study.yaml", "-o", folder / "done", "-q")
    outcome = worker.run("command", *words, mib=8192, seconds=120)
    assert outcome.kind == "ok", outcome
    return folder / "done"


@pytest.fixture
def cases(sound, folders, study, tmp_path):
    (tmp_path / "outside").mkdir()
    return Cases(tmp_path, sound, folders["sd"], study)


def meet(worker, found, tmp_path):
    """Run the cases; returns their outcomes, after checking every one."""
    wrong, outcomes = [], []
    for case in found:
        case.make()
        outcome = worker.run(case.job, *case.arguments, mib=4096)
        outcomes.append(outcome)
        good = outcome.typed or (outcome.kind == "ok" and case.may_pass)
        if not good or outcome.seconds > SECONDS or outcome.mib > MIB or "\n" in outcome.text:
            wrong.append(f"{case.name}: {outcome.kind}: {outcome.text[:160]} {outcome.seconds:.1f} s {outcome.mib} MiB")
    wrong += [f"ran: {path}" for path in tmp_path.rglob("*.ran")]
    assert not wrong, "\n".join(wrong)
    return outcomes


def test_the_same_commands_take_sound_files(worker, sound, folders, study, tmp_path):
    """Else the errors below would say nothing."""
    for number, (name, words) in enumerate(COMMAND.items()):
        source = study if "study" in words[0] else folders["sd"] if "model" in name else sound
        place = copy(source, tmp_path / f"{number}")
        outcome = worker.run("command", *(word.format(place=place) for word in words), mib=8192, seconds=120)
        assert outcome.kind == "ok", (name, outcome)


def test_some_hostile_files(worker, cases, tmp_path):
    found = list(cases.all())
    meet(worker, random.Random(0).sample(found, round(SHARE * len(found))), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_hostile_files(worker, cases, tmp_path, measured, group):
    outcomes = meet(worker, list(getattr(cases, group)()), tmp_path)
    counted = {
        "cases": len(outcomes),
        "typed_errors": sum(outcome.typed for outcome in outcomes),
        "harmless": sum(outcome.kind == "ok" for outcome in outcomes),
        "other": 0,
        "longest_cpu_seconds": round(max(outcome.seconds for outcome in outcomes), 2),
        "largest_growth_mib": max(outcome.mib for outcome in outcomes),
    }
    measured("hostile_files", **{group: counted})
