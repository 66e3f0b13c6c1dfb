"""Files from a stranger: an error of ours, within seconds and bounded memory, and nothing in them runs."""

from __future__ import annotations

import random

import pytest

from security.places import Cases

SECONDS, MIB = 5.0, 1024
SHARE = 0.08  # of the cases in the default tests


def cases(sound, folders, tmp_path):
    (tmp_path / "outside").mkdir()
    return list(Cases(tmp_path, sound, folders["sd"]).all())


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


def test_some_hostile_files(worker, sound, folders, tmp_path):
    found = cases(sound, folders, tmp_path)
    meet(worker, random.Random(0).sample(found, round(SHARE * len(found))), tmp_path)


@pytest.mark.slow
def test_hostile_files(worker, sound, folders, tmp_path, measured):
    found = cases(sound, folders, tmp_path)
    outcomes = meet(worker, found, tmp_path)
    assert len(found) >= 200
    measured(
        "hostile_files",
        cases=len(found),
        typed_errors=sum(outcome.typed for outcome in outcomes),
        harmless=sum(outcome.kind == "ok" for outcome in outcomes),
        other=0,
        longest_cpu_seconds=round(max(outcome.seconds for outcome in outcomes), 2),
        largest_growth_mib=max(outcome.mib for outcome in outcomes),
    )
