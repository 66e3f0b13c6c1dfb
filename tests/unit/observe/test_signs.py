"""The early warning's rule on constructed curves: it speaks when it should, and keeps quiet on noise."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from pcpo.observe.events import EventWriter, read_events
from pcpo.observe.report import write_report
from pcpo.observe.signs import DIVERSITY, DUPLICATES, HELD_OUT, PIXELS, Rule, judge, kl_growth, signs

PROMPTS = 8
START = [0.4, 0.5, 0.6, 0.7, 0.5, 0.6, 0.4, 0.7]


def curve(*factors: float, start: list[float] = START) -> list[tuple[int, list[float]]]:
    """Every prompt's start times a factor of its evaluation, with a little of its own on top."""
    own = [0.01, -0.01] * (len(start) // 2)
    return [
        (5 * place, [value * factor + (own[p] if place else 0) for p, value in enumerate(start)])
        for place, factor in enumerate(factors)
    ]


@pytest.mark.parametrize(
    ("factors", "left"),
    [
        ((1, 0.9, 0.7, 0.6), True),
        ((1, 0.9, 0.6, 0.85), False),  # came back
        ((1, 1, 1, 0.6), False),  # one evaluation only
        ((1, 0.95, 0.9, 0.85), False),  # too little
        ((1, 1.2, 1.5, 1.6), False),  # the good direction
        ((1, 0.6), False),  # too early
        ((1, 0.79, 0.79), True),
    ],
)
def test_diversity_is_a_sign_when_it_fell_by_a_fifth_and_stays_there(factors: tuple[float, ...], left: bool) -> None:
    assert judge("diversity", DIVERSITY, curve(*factors)).left is left


def test_a_change_of_one_prompt_alone_is_not_sure() -> None:
    gone = [0.0 if p < 2 else value for p, value in enumerate(START)]
    rest = [(at, [value if p < 2 else 3 * value for p, value in enumerate(values)]) for at, values in curve(1, 1, 1)]
    found = judge("diversity", DIVERSITY, [(0, START), (5, gone), (10, gone)])
    assert found.change == pytest.approx(-0.9 / 8) and found.limit == pytest.approx(0.11) and not found.left
    assert found.low < found.change < found.high and found.high > 0
    assert not judge("diversity", DIVERSITY, rest).left


def test_the_interval_is_students() -> None:
    found = judge("m", DIVERSITY, [(0, [1.0, 1.0, 1.0]), (1, [1.0, 2.0, 3.0]), (2, [1.0, 2.0, 3.0])])
    assert found.change == 1
    assert found.high - found.change == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    doubled = judge("m", DIVERSITY, [(0, [1.0, 1.0, 1.0]), (1, [1.0, 2.0, 3.0]), (2, [1.0, 2.0, 3.0])], widen=2)
    assert doubled.high - 1 == pytest.approx(2 * (found.high - 1))


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (-0.55, 1.0), (3.0, 100.0)])
def test_a_held_out_reward_is_judged_whatever_its_zero_and_unit(shift: float, scale: float) -> None:
    def moved(rows):
        return [(at, [scale * (value + shift) for value in values]) for at, values in rows]

    assert judge("r", HELD_OUT, moved(curve(1, 0.8, 0.8))).left
    assert not judge("r", HELD_OUT, moved(curve(1, 0.97, 0.97))).left
    assert not judge("r", HELD_OUT, moved(curve(1, 1.3, 1.3))).left


def test_pixels_count_in_both_directions_and_duplicates_upwards_only() -> None:
    for factor in (0.6, 1.4):
        assert judge("saturation", PIXELS, curve(1, factor, factor)).left
        assert not judge("saturation", PIXELS, curve(1, factor, 2 - factor)).left, "two directions are no trend"
    none, some = [0.0] * 8, [0.0, 0.5, 0.5, 1.0, 0.5, 0.5, 0.0, 0.5]
    assert judge("near-duplicates", DUPLICATES, [(0, none), (1, some), (2, some)]).left
    assert not judge("near-duplicates", DUPLICATES, [(0, some), (1, none), (2, none)]).left


def test_what_has_no_scale_or_no_prompts_is_not_judged() -> None:
    flat = [(at, [0.3] * 8) for at in (0, 1)] + [(2, [0.1] * 8)]
    assert judge("r", HELD_OUT, flat).limit is None
    assert judge("r", HELD_OUT, [(0, [1.0]), (1, [0.1]), (2, [0.1])]).limit is None
    assert judge("r", HELD_OUT, [(0, [None, None]), (1, [None, None]), (2, [None, None])]).points == []
    assert judge("d", DIVERSITY, [(0, [1.0, 2.0]), (1, [0.1]), (2, [0.1, 0.2, 0.3])]).limit is None
    one_missing = [(0, [1.0, 2.0, None, 1.5]), (1, [0.5, 1.0, 7.0, 0.7]), (2, [0.5, 1.0, 7.0, 0.7])]
    assert judge("d", DIVERSITY, one_missing).change == pytest.approx(-2.3 / 3)


@pytest.mark.parametrize("rule", [DIVERSITY, HELD_OUT, DUPLICATES, PIXELS], ids=["diversity", "held_out", "dup", "px"])
def test_noise_around_the_start_alarms_in_about_one_run_of_a_hundred(rule: Rule) -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(1000):
        level = rng.uniform(0.3, 0.9, PROMPTS)
        # every prompt wanders by a quarter of its level, half of it kept from one evaluation to the next
        noise, rows = np.zeros(PROMPTS), []
        for at in range(9):
            noise = 0.5 * noise + (0.75**0.5) * rng.normal(0, 0.25, PROMPTS) * level
            rows.append((at, (level + noise).tolist()))
        alarms += judge("m", rule, rows).left
    assert alarms < 15


def test_kl_is_compared_by_quarters() -> None:
    rng = np.random.default_rng(0)
    steady = (1e-5 * np.exp(rng.normal(0, 1, 40))).tolist()
    assert kl_growth(steady) is not None and kl_growth(steady) < 3
    assert kl_growth([1.0] * 10 + [20.0] * 10) == 20
    assert kl_growth([1.0] * 19 + [1e6]) == 1, "a single spike is none"
    assert kl_growth([1.0] * 11) is None and kl_growth([0.0] * 40) is None and kl_growth([None] * 40) is None


def write(run: Path, diversity: tuple[float, ...], *, kl: float = 1e-5, saturation: float = 1.0) -> Path:
    """A run of 20 iterations whose reward rises, with two pictures a prompt."""
    run.mkdir()
    rows = curve(*diversity)
    with EventWriter(run / "events.jsonl") as writer:
        for number in range(1, 21):
            writer.write("iteration", iteration=number, reward_mean=1.0, approx_kl=1e-5 if number <= 10 else kl)
        for place, (at, values) in enumerate(rows):
            rewards = [10.0 + 2 * place + picture % 5 for picture in range(16)]
            colours = [value * (saturation if place else 1) + 0.001 * p for p, value in enumerate(START)]
            writer.write(
                "evaluation",
                iteration=at,
                reward_mean=sum(rewards) / 16,
                values=rewards,
                prompts=[f"p{picture // 2}" for picture in range(16)],
                monitors={"diversity": sum(values) / 8, "saturation": sum(colours) / 8},
                monitors_per_prompt={"diversity": values, "saturation": colours},
                held_out={"judge": 1.0 + 0.1 * place},
                held_out_per_prompt={"judge": [value + 0.1 * place for value in START]},
                diversity_features="emoji_clip",
                diversity_among="prompt",
            )
    return run


def words(run: Path) -> str:
    page = write_report(run).read_text("utf-8")
    return re.sub(r"<[^>]+>", "", page[page.index("<body>") :])


def test_the_page_says_what_happened_in_its_head_and_in_its_panel(tmp_path: Path) -> None:
    page = words(write(tmp_path / "run", (1, 0.9, 0.6, 0.5)))
    said = (
        "Diversity fell by 50.0 % (0.55 \u2192 0.275) while the reward rose by 50.5 % (11.9 \u2192 17.9): "
        "look at the pictures."
    )
    assert page.count(said) == 2
    assert "mean distance of two pictures of a prompt in emoji_clip" in page
    assert "Held-out judge" in page


def test_a_healthy_run_is_said_to_be_without_signs(tmp_path: Path) -> None:
    page = words(write(tmp_path / "run", (1, 0.97, 1.02, 0.95)))
    assert page.count("No warning sign") == 2 and "look at the pictures." not in page


def test_kl_that_runs_away_and_pixels_that_changed_are_named(tmp_path: Path) -> None:
    assert "grew 50 times" in words(write(tmp_path / "kl", (1, 1, 1, 1), kl=5e-4))
    page = words(write(tmp_path / "px", (1, 1, 1, 1), saturation=1.5))
    assert "Saturation rose by 49.7 %" in page and "if the reward is not about that." in page
    found = signs(read_events(tmp_path / "px/events.jsonl"))
    assert found.alarms() == [] and len(found.notes()) == 1


def test_a_reward_that_falls_is_a_sign_by_itself(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "events.jsonl") as writer:
        for at, values in curve(1, 0.7, 0.7):
            writer.write("evaluation", iteration=at, reward_mean=sum(values) / 8, values=values)
    assert signs(read_events(tmp_path / "events.jsonl")).alarms() == [
        "The evaluation reward itself fell by 30.0 % (0.55 \u2192 0.385)."
    ]


def test_few_evaluations_are_too_early_and_logs_without_monitors_are_not_judged(tmp_path: Path) -> None:
    assert "Too early to tell" in words(write(tmp_path / "run", (1, 0.5)))
    with EventWriter(tmp_path / "events.jsonl") as writer:
        for number in range(1, 13):
            writer.write("iteration", iteration=number, approx_kl=1e-5)
    assert "This log has no monitors" in words(tmp_path)


def test_a_held_out_reward_without_values_per_prompt_is_drawn_and_not_judged(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "events.jsonl") as writer:
        for at in range(3):
            writer.write("evaluation", iteration=at, held_out={"judge": 1.0 - at})
    (sign,) = signs(read_events(tmp_path / "events.jsonl")).held_out
    assert [value for _, value in sign.points] == [1, 0, -1] and sign.limit is None
