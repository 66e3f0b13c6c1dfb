"""The page as text: what it says, what it embeds, and what it does with missing and hostile parts."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pcpo.errors import RunFolderError
from pcpo.observe.events import EventWriter, read_events
from pcpo.observe.pictures import data_uri, gallery, spaced
from pcpo.observe.report import write_report
from pcpo.observe.series import clip_grid, credit_grid, distance, series, shares, spread, step_shares
from pcpo.observe.tables import flatten

MakeRun = Callable[..., Path]


def page_of(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def test_the_page_states_the_result_first(typical_run: Path) -> None:
    page = page_of(typical_run)
    log = read_events(typical_run / "events.jsonl")
    first, last = log.evaluations[0].reward_mean, log.evaluations[-1].reward_mean
    assert first is not None and last is not None
    words = re.sub(r"<[^>]+>", "", page[page.index("<body>") :])
    gain = 100 * (last - first) / first
    assert f"Evaluation reward rose from {first:.4g} to {last:.4g} between iterations 0 and 12: +{gain:.1f} %." in words
    assert "proportional credit, matching objective, flow_sde sampler" in words
    assert "colorfulness + 0.5 \u00d7 alignment" in words


def test_the_page_holds_everything_and_its_policy_covers_exactly_that(typical_run: Path) -> None:
    page = page_of(typical_run)
    assert not re.search(r"""(src|href|url|@import)\s*[=(]\s*["']?(?!data:image/|#)[a-z]""", page)
    style, script = (re.search(rf"<{tag}>(.*?)</{tag}>", page, re.S) for tag in ("style", "script"))
    assert style is not None and script is not None
    for block, rule in ((style, "style-src"), (script, "script-src")):
        digest = base64.b64encode(hashlib.sha256(block[1].encode()).digest()).decode()
        assert f"{rule} &#x27;sha256-{digest}&#x27;" in page
    assert "unsafe" not in page
    assert " style=" not in page


def test_writing_twice_gives_the_same_page(typical_run: Path) -> None:
    assert page_of(typical_run) == page_of(typical_run)


@pytest.mark.parametrize(
    ("options", "notes"),
    [
        (
            {"iterations": 0, "evaluations": ()},
            ["No iteration and no evaluation", "No evaluation pictures", "no two rewards"],
        ),
        (
            {"iterations": 0, "evaluations": (0,)},
            ["one evaluation so far", "No clip fractions", "No iteration has been"],
        ),
        ({"iterations": 1, "evaluations": ()}, ["No evaluation pictures", "no two rewards"]),
        ({"iterations": 3, "evaluations": ()}, ["Training reward (there are no two evaluations)"]),
        ({"iterations": 3, "gradient_share": False, "ended": False}, ["was not measured", "not finished"]),
    ],
)
def test_missing_parts_become_notes(
    tmp_path: Path, make_run: MakeRun, options: dict[str, object], notes: list[str]
) -> None:
    page = page_of(make_run(tmp_path, pictures=2, **options))
    for words in notes:
        assert words in page


def test_an_empty_log_gives_a_page_of_notes(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").touch()
    page = page_of(tmp_path)
    assert "unnamed run" in page and "The log has no credit schedule." in page
    assert page.count('class="note"') == 7


def test_a_folder_without_a_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"events\.jsonl"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_every_number_missing_still_gives_a_page(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "events.jsonl") as writer:
        writer.write("credit", steps=[0, 1], native=[None, 1.0], target=[0.0, 0.0])
        writer.write("iteration", iteration=1, steps=[0], clip_fraction_per_step=[None], reward_mean=float("nan"))
        writer.write("evaluation", iteration=1, reward_mean=None, values=[], pictures=[])
        writer.write("gradient_share", iteration=1, steps=[0, 1], share=[0.0, 0.0])
    page = page_of(tmp_path)
    assert "nan" not in page.lower().replace("nance", "")
    assert "No clip fractions per step have been logged." in page


def test_settings_are_flattened_in_order_whatever_their_shape() -> None:
    config = {
        "b": {"y": 1, "x": None},
        "a": [1, 2],
        "r": [{"name": "n", "weight": 0.5}],
        "on": True,
        "empty": {},
    }
    assert list(flatten(config)) == [
        ("b.y", "1"), ("b.x", "none"), ("a", "1, 2"), ("r.0.name", "n"), ("r.0.weight", "0.5"), ("on", "yes"),
        ("empty", "none"),
    ]  # fmt: skip
    assert list(flatten({})) == []
    deep: dict[str, object] = {"end": 1}
    for _ in range(5000):
        deep = {"k": deep}
    assert len(list(flatten(deep))) == 1
    assert len(list(flatten({str(index): index for index in range(1000)}))) == 400


# -- what the charts are drawn from


def test_long_runs_are_averaged_without_losing_an_iteration(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "events.jsonl") as writer:
        for iteration in range(1, 1001):
            writer.write("iteration", iteration=iteration, reward_mean=float(iteration))
    samples = series(read_events(tmp_path / "events.jsonl").iterations, lambda row: row.reward_mean, limit=300)
    assert len(samples) == 250
    assert (samples[0].first, samples[0].last, samples[0].value, samples[-1].last) == (1, 4, 2.5, 1000)


def test_clip_cells_stand_only_where_a_step_was_trained(typical_run: Path) -> None:
    log = read_events(typical_run / "events.jsonl")
    grid = clip_grid(log, limit=100)
    assert grid is not None and len(grid.steps) == 10 and len(grid.columns) == 12
    expected = {
        (column, step): value
        for column, row in enumerate(log.iterations)
        for step, value in zip(row.steps, row.clip_fraction_per_step, strict=True)
    }
    assert {(cell.column, grid.steps[cell.row]): cell.value for cell in grid.cells} == expected


def test_shares_of_credit_are_comparable_sums_of_one(typical_run: Path) -> None:
    found = step_shares(read_events(typical_run / "events.jsonl"))
    assert found is not None and found.measurements == 3
    for values in (found.native, found.target, found.measured):
        assert sum(values) == pytest.approx(1)
    assert spread(found.native) == pytest.approx(24.2, abs=0.1)
    native, measured = distance(found.native, found.target), distance(found.measured, found.target)
    assert native is not None and measured is not None and measured < native / 3
    assert all(low <= mean <= high for low, mean, high in zip(found.low, found.measured, found.high, strict=True))


def test_a_measurement_of_some_steps_is_compared_with_those_steps_only(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "events.jsonl") as writer:
        writer.write("credit", steps=[0, 1, 2], native=[1.0, 2.0, 5.0], target=[2.0, 2.0, 2.0])
        writer.write("gradient_share", iteration=0, steps=[0, 2], share=[0.4, 0.6])
    found = step_shares(read_events(tmp_path / "events.jsonl"))
    assert found is not None
    assert (found.steps, found.measured) == ([0, 2], [0.4, 0.6])
    assert found.native == pytest.approx([1 / 6, 5 / 6]) and found.target == [0.5, 0.5]


def test_a_target_that_changes_has_a_history_and_its_last_measurement(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "events.jsonl") as writer:
        for iteration in range(6):
            target = [4.0 - 0.5 * iteration, 4.0 + 0.5 * iteration]
            writer.write("credit", iteration=iteration, steps=[0, 1], native=[1.0, 7.0], target=target)
            writer.write(
                "gradient_share", iteration=iteration, steps=[0, 1], share=[0.1 * iteration, 1 - 0.1 * iteration]
            )
        writer.write("iteration", iteration=5, reward_mean=1.0)
    log = read_events(tmp_path / "events.jsonl")
    found = step_shares(log)
    assert found is not None and found.measurements == 1
    assert found.measured == [0.5, 0.5] and found.target == [1.5 / 8, 6.5 / 8]
    grid = credit_grid(log, limit=3)
    assert grid is not None and grid.columns == [(1, 1), (3, 3), (5, 5)]
    assert [cell.value for cell in grid.cells if cell.row == 0] == [3.5 / 8, 2.5 / 8, 1.5 / 8]
    html = write_report(tmp_path).read_text("utf-8")
    assert "How the target changed" in html and html.count('class="credit-heatmap"') == 2


def test_a_target_that_stays_has_no_history(typical_run: Path) -> None:
    assert credit_grid(read_events(typical_run / "events.jsonl"), limit=100) is None


def test_shares_refuse_missing_and_negative_weights() -> None:
    assert shares([1.0, 3.0]) == [0.25, 0.75]
    assert shares([1.0, None]) == shares([1.0, -1.0]) == shares([0.0]) == shares([]) == []


# -- pictures


def test_chosen_pictures_are_evenly_spaced_with_both_ends() -> None:
    assert spaced(3, 5) == [0, 1, 2]
    assert spaced(101, 5) == [0, 25, 50, 75, 100]


def test_small_pictures_are_embedded_without_loss(typical_run: Path) -> None:
    shown = gallery(typical_run, read_events(typical_run / "events.jsonl"))
    assert shown is not None and len(shown.pairs) == 8 and not shown.problems
    assert shown.iterations == [0, 6, 12] and [len(row.pictures) for row in shown.rows] == [3] * 8
    data = base64.b64decode(shown.pairs[0].after.uri.partition(",")[2])
    original = Image.open(typical_run / "images/000012/00.png")
    assert np.array_equal(np.asarray(Image.open(BytesIO(data))), np.asarray(original))


def test_large_pictures_keep_to_their_budget() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    kind, _, data = data_uri(Image.fromarray(noise), side=384, budget=20_000).partition(",")
    assert kind == "data:image/jpeg;base64" and len(base64.b64decode(data)) <= 20_000


def test_a_page_with_many_large_pictures_stays_below_five_megabytes(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    with EventWriter(tmp_path / "events.jsonl") as writer:
        for iteration in range(2):
            writer.write("evaluation", iteration=iteration, reward_mean=1.0, pictures=["noise.png"] * 40)
    path = write_report(tmp_path)
    assert 1_000_000 < path.stat().st_size < 5_000_000
    assert "24 of 40 pictures, evenly spaced" in path.read_text()


@pytest.mark.parametrize(
    "name", ["../outside.png", "/etc/hostname", "images/none.png", "report.txt", "link.png", "a\0b"]
)
def test_pictures_outside_the_run_or_unreadable_are_left_out_with_a_warning(tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "outside.png")
    (run / "report.txt").write_text("no picture")
    (run / "link.png").symlink_to(tmp_path / "outside.png")
    with EventWriter(run / "events.jsonl") as writer:
        writer.write("evaluation", iteration=0, pictures=[name], prompts=["p"], values=[1.0])
    page = page_of(run)
    assert "data:image/" not in page
    assert "is not shown" in page and "Warnings (1)" in page


def test_only_a_sheet_is_shown_as_one_picture(tmp_path: Path) -> None:
    for iteration in (0, 1):
        Image.new("RGB", (32, 16), (90 * iteration, 2, 3)).save(tmp_path / f"{iteration}.png")
    with EventWriter(tmp_path / "events.jsonl") as writer:
        for iteration in (0, 1):
            writer.write("evaluation", iteration=iteration, sheet=f"{iteration}.png")
    shown = gallery(tmp_path, read_events(tmp_path / "events.jsonl"))
    assert shown is not None and [pair.prompt for pair in shown.pairs] == ["all evaluation pictures"]


def test_hostile_text_reaches_the_page_only_escaped(tmp_path: Path) -> None:
    attack = "</script></style>\"'><script>alert(1)</script><img src=x onerror=alert(2)>\ud800\u0000"
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    rated = {"prompts": [attack], "values": [1], "pictures": ["p.png"], "rewards": {attack: 1, "b": 2}}
    lines = [
        {
            "type": "run_start",
            "run_name": attack,
            "config": {attack: [attack]},
            "environment": {attack: attack},
        },
        {"type": "evaluation", "iteration": 0, **rated},
        {"type": "evaluation", "iteration": 1, **rated},
        {"type": "warning", "message": attack},
        {"type": "run_end", "reason": attack},
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(tmp_path)
    assert page.count("<script") == 1 and page.count("</style>") == 1
    assert "<img src=x" not in page
    assert page.count("&lt;script&gt;alert(1)") >= 8
