"""The log: what is written comes back, and what a kill or a restart leaves is read as documented."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcpo.errors import RunFolderError
from pcpo.observe.events import EventWriter, plain, read_events


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def test_a_written_run_comes_back(typical_run: Path) -> None:
    log = read_events(typical_run / "events.jsonl")
    assert log.run_start is not None and log.run_start.config["sampler"]["name"] == "flow_sde"
    assert log.credit is not None and len(log.credit.native) == 10
    assert [row.iteration for row in log.iterations] == list(range(1, 13))
    assert [event.iteration for event in log.evaluations] == [0, 6, 12]
    assert len(log.gradient_share) == 3
    assert log.end is not None and log.end.reason == "finished"


def test_tensors_paths_and_non_finite_numbers_become_plain_json(log_file: Path) -> None:
    with EventWriter(log_file) as writer:
        writer.write(
            "iteration",
            iteration=torch.tensor(3),
            reward_mean=math.nan,
            clip_fraction_per_step=torch.tensor([0.5, math.inf]),
            steps=(0, 1),
            path=Path("a/b"),
        )
    line = json.loads(log_file.read_text())
    assert line == {
        "type": "iteration",
        "iteration": 3,
        "reward_mean": None,
        "clip_fraction_per_step": [0.5, None],
        "steps": [0, 1],
        "path": "a/b",
    }
    assert read_events(log_file).iterations[0].reward_mean is None


def test_a_value_json_cannot_hold_is_refused_and_nothing_is_written(log_file: Path) -> None:
    with EventWriter(log_file) as writer:
        with pytest.raises(TypeError):
            writer.write("warning", message=object())
        writer.write("warning", message="fine")
    assert read_events(log_file).warnings == ["fine"]


def test_each_line_is_on_disk_before_the_next_is_written(log_file: Path) -> None:
    with EventWriter(log_file) as writer:
        for count in range(1, 4):
            writer.write("warning", message=str(count))
            assert len(read_events(log_file).warnings) == count


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_any_config_survives_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, config: dict[str, object]
) -> None:
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    with EventWriter(path) as writer:
        writer.write("run_start", config=config)
    start = read_events(path).run_start
    assert start is not None and start.config == plain(config)


def write_lines(path: Path, *iterations: int, reward: float = 0.0) -> None:
    with EventWriter(path) as writer:
        for iteration in iterations:
            writer.write("iteration", iteration=iteration, reward_mean=reward)


def test_after_a_restart_the_last_line_wins_and_the_abandoned_tail_is_dropped(log_file: Path) -> None:
    write_lines(log_file, 1, 2, 3, 4, 5, reward=1.0)
    write_lines(log_file, 3, 4, reward=2.0)
    rows = read_events(log_file).iterations
    assert [(row.iteration, row.reward_mean) for row in rows] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def test_a_resumed_run_is_open_until_it_ends_again(log_file: Path) -> None:
    with EventWriter(log_file) as writer:
        writer.write("run_start", run_name="a")
        writer.write("run_end", reason="finished")
        writer.write("run_start", run_name="a")
    assert read_events(log_file).end is None


TORN = [b'{"type": "warn', b'{"type": "warning", "message": "\xe2\x82', b"\0\0\0\0"]


@pytest.mark.parametrize("tail", TORN)
def test_a_torn_last_line_is_skipped_by_the_reader_and_cut_by_the_next_writer(log_file: Path, tail: bytes) -> None:
    write_lines(log_file, 1, 2)
    with log_file.open("ab") as file:
        file.write(tail)
    assert [row.iteration for row in read_events(log_file).iterations] == [1, 2]
    write_lines(log_file, 3)
    assert [row.iteration for row in read_events(log_file).iterations] == [1, 2, 3]
    assert tail not in log_file.read_bytes()


def test_a_whole_last_event_without_its_newline_is_kept(log_file: Path) -> None:
    write_lines(log_file, 1, 2)
    log_file.write_bytes(log_file.read_bytes().rstrip(b"\n"))
    write_lines(log_file, 3)
    assert [row.iteration for row in read_events(log_file).iterations] == [1, 2, 3]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "Expecting property name"),
        (b"[1, 2]", "not a JSON object"),
        (b'{"message": "no type"}', 'no "type"'),
        (b'{"type": "iteration"}', "iteration: Field required"),
        (b'{"type": "iteration", "iteration": "many"}', "valid integer"),
        (b'{"type": "iteration", "iteration": -1}', "greater than or equal to 0"),
        (b'{"type": "iteration", "iteration": 1, "loss": NaN}', "NaN is not JSON"),
        (
            b'{"type": "iteration", "iteration": 1, "steps": [0], "clip_fraction_per_step": [0, 0]}',
            "2 values for 1",
        ),
        (b'{"type": "warning", "message": "\xff"}', "utf-8"),
        (b'{"type": ' + b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_malformed_line_is_refused_with_its_number(log_file: Path, line: bytes, reason: str) -> None:
    write_lines(log_file, 1)
    with log_file.open("ab") as file:
        file.write(line + b'\n{"type": "warning", "message": "after"}\n')
    with pytest.raises(RunFolderError, match="line 2") as caught:
        read_events(log_file)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_event_type_and_unknown_fields_are_passed_over(log_file: Path) -> None:
    log_file.write_text('{"type": "new"}\n{"type": "iteration", "iteration": 1, "later": []}\n')
    assert len(read_events(log_file).iterations) == 1


def test_numbers_too_large_to_draw_count_as_missing(log_file: Path) -> None:
    log_file.write_text('{"type": "iteration", "iteration": 1, "loss": 1e999, "grad_norm": -1e305}\n')
    row = read_events(log_file).iterations[0]
    assert row.loss is None and row.grad_norm is None


def test_a_missing_log_names_the_file_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"events\.jsonl: cannot be read .* -> name the folder of a run"):
        read_events(tmp_path / "events.jsonl")
