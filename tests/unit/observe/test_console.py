"""The terminal: lines in a log, bars on a terminal, silence when quiet, no control characters."""

from __future__ import annotations

import io
import re

import pytest

from pcpo.observe.console import Console, duration, iteration_line

EVENT = {
    "iteration": 3,
    "reward_mean": 0.4123,
    "reward_std": 0.0832,
    "clip_fraction": 0.1234,
    "approx_kl": 1.23e-05,
    "ratio_error": 0.0,
    "grad_norm": 0.841,
    "zero_std_groups": 2,
    "pictures_per_second": 9.82,
    "invalid": 0,
}


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Ascii(io.StringIO):
    encoding = "ascii"


def shown(file: io.StringIO, *, quiet: bool = False) -> str:
    with Console(quiet, 30, file=file) as console:
        console.header({"model": "emoji-sd", "reward": "colorfulness"})
        with console.task("rollout", 48) as advance:
            advance(24)
            advance()
        console.iteration(EVENT)
        console.evaluation({"iteration": 10, "reward_mean": 0.5, "reward_std": 0.1, "rewards": {"a": 1.0, "b": 2.0}})
        console.warn("low disk")
        console.summary(reward_before=0.4, reward_after=0.5, iterations=30, seconds=200.0, report="r/report.html")
    return file.getvalue()


def test_a_log_file_gets_one_plain_line_per_event() -> None:
    assert shown(io.StringIO()).splitlines() == [
        "model   emoji-sd",
        "reward  colorfulness",
        iteration_line(EVENT, 30),
        "evaluation at 10: reward 0.5 +- 0.1 (a 1, b 2)",
        "warning: low disk",
        "reward  0.4 -> 0.5 (+25.0 %)",
        "done    30 iterations in 3 min 20 s",
        "report  r/report.html",
    ]


def test_the_iteration_line_names_every_figure() -> None:
    line = iteration_line(EVENT, 30)
    assert " ".join(line.split()) == (
        "iter 3/30 reward 0.4123 +- 0.0832 clip 12.3 % kl 1.2e-5 ratio err 0 grad 0.841 zero-std 2 9.82 pictures/s"
    )


def test_lines_of_a_run_align_and_survive_missing_numbers() -> None:
    empty = dict.fromkeys(EVENT) | {"iteration": 12, "zero_std_groups": 0}
    line = iteration_line(empty, 30)
    assert line.count("n/a") == 7
    assert line.index("clip") == iteration_line(EVENT, 30).index("clip")


def test_invalid_rewards_are_told_only_when_there_are_any() -> None:
    assert "invalid" not in iteration_line(EVENT)
    assert iteration_line(EVENT | {"invalid": 4}).endswith("invalid 4")


def test_a_terminal_gets_bars_with_the_time_left() -> None:
    file = FakeTerminal()
    with Console(total_iterations=30, file=file) as console, console.task("rollout", 48) as advance:
        advance(24)
        advance()
        console._progress.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())
    assert re.search(r"rollout .* 25/48 time left", text)
    assert re.search(r"iterations .* 0/30 time left", text)


def test_the_time_left_is_told_for_slow_iterations_and_for_a_resumed_run() -> None:
    now = 0.0
    console = Console(total_iterations=30, file=FakeTerminal())
    console._progress.get_time = lambda: now  # type: ignore[method-assign]
    for iteration in (21, 22, 23):
        now += 100.0
        console.iteration(EVENT | {"iteration": iteration})
    assert console._progress.tasks[0].time_remaining == pytest.approx(700)


def test_quiet_prints_warnings_only() -> None:
    assert shown(io.StringIO(), quiet=True) == "warning: low disk\n"


def test_text_from_outside_cannot_move_the_cursor_or_break_the_encoding() -> None:
    file = Ascii()
    with Console(file=file) as console:
        console.header({"prompt": "\x1b[2Jcaf\u00e9 [bold]x[/bold] \u202e"})
    assert file.getvalue() == "prompt  ?[2Jcaf? [bold]x[/bold] ?\n"


def test_a_task_that_fails_leaves_no_bar_behind() -> None:
    console = Console(total_iterations=1, file=FakeTerminal())
    with console, pytest.raises(RuntimeError), console.task("rollout", 4):
        raise RuntimeError
    assert [task.description for task in console._progress.tasks] == ["iterations"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(8.06, "8.1 s"), (59.99, "60.0 s"), (200, "3 min 20 s"), (3599.6, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words
