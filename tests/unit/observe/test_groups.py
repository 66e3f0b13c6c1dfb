"""Several runs on one page: who belongs together, what their mean and band are, and what the page says and shows."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pcpo.errors import RunFolderError
from pcpo.observe.events import EventWriter
from pcpo.observe.groups import differences, find_runs, group_shares, means, over_seeds, read_groups
from pcpo.observe.pictures import finals
from pcpo.observe.runs_page import write_runs

CONFIG: dict[str, Any] = {
    "name": "uniform",
    "model": {"path": "emoji-sd"},
    "reward": [{"name": "colorfulness"}],
    "credit": {"schedule": "uniform"},
    "optim": {"learning_rate": 1e-3},
    "evaluation": {"every": 5},
    "run": {"seed": 0, "output": None, "threads": None},
}
ATTACK = "</script><script>hacked=1</script><img src=x onerror=hacked=1>"


def write(folder: Path, seed: int, rewards: tuple[float, ...], prompt: str = "red apple", **changes: Any) -> Path:
    """A run with one evaluation every five iterations, of two pictures of one prompt."""
    config = copy.deepcopy(CONFIG)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        config[section] = {**config[section], name: value} if name else value
    config["run"] = {"seed": seed, "output": str(folder), "threads": seed}
    with EventWriter(folder / "events.jsonl") as writer:
        writer.write("run_start", run_name=config["name"], config=config)
        writer.write("credit", steps=[0, 1], native=[1.0, 3.0], target=[1.0, 1.0])
        for place, reward in enumerate(rewards):
            at = 5 * place
            if at:
                writer.write("iteration", iteration=at, reward_mean=reward, approx_kl=1e-5, seconds={"total": 2.0})
            names = [f"{at}-{number}.png" for number in range(2)]
            for number, name in enumerate(names):
                Image.new("RGB", (16, 16), (10 * seed, 5 * at, 100 * number)).save(folder / name)
            writer.write(
                "evaluation", iteration=at, reward_mean=reward, pictures=names, prompts=[prompt] * 2,
                values=[reward, reward], held_out={"judge": 1.0}, monitors={"diversity": 0.5},
            )  # fmt: skip
            writer.write("gradient_share", iteration=at, steps=[0, 1], share=[0.5 - 0.1 * seed, 0.5 + 0.1 * seed])
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three seeds of one configuration, one of another of the same name."""
    made = [write(tmp_path / f"a-{seed}", seed, (1.0, 2.0 + seed, 4.0 + seed)) for seed in range(3)]
    return [*made, write(tmp_path / "b-0", 0, (1.0, 1.5, 2.0), credit__schedule="native")]


def test_runs_that_differ_in_the_seed_only_are_one_group(runs: list[Path]) -> None:
    first, second = read_groups(runs)
    assert [run.seed for run in first.runs] == [0, 1, 2] and (first.seeds, second.seeds) == ("3 seeds", "1 seed")
    assert (first.name, second.name) == ("uniform (credit.schedule=uniform)", "uniform (credit.schedule=native)")
    assert differences([first, second]) == {"credit.schedule": ["uniform", "native"]}
    assert read_groups(runs[:3])[0].name == "uniform"


def test_names_hold_no_more_settings_than_tell_them_apart(tmp_path: Path) -> None:
    made = [
        write(tmp_path / "0", 0, (1.0,)),
        write(tmp_path / "1", 0, (1.0,), credit__schedule="native", optim__learning_rate=1.0),
        write(tmp_path / "2", 0, (1.0,), optim__learning_rate=1.0),
        write(tmp_path / "3", 0, (1.0,), name="other", credit__schedule="native"),
    ]
    assert [group.name for group in read_groups(made)] == [
        "uniform (credit.schedule=uniform, optim.learning_rate=0.001)",
        "uniform (credit.schedule=native)",
        "uniform (credit.schedule=uniform, optim.learning_rate=1)",
        "other",
    ]


def test_a_band_is_students_interval_over_seeds(runs: list[Path]) -> None:
    group = read_groups(runs)[0]
    found = means(group, lambda log: [(event.iteration, event.reward_mean) for event in log.evaluations])
    assert [(point.iteration, point.mean, point.n) for point in found] == [(0, 1, 3), (5, 3, 3), (10, 5, 3)]
    assert found[1].high == pytest.approx(3 + 4.3027 / 3**0.5, rel=1e-4)
    assert found[1].low == pytest.approx(3 - 4.3027 / 3**0.5, rel=1e-4)
    assert (found[0].low, found[0].high) == (1, 1)
    for values in ([1.0], [1.0, 2.0]):
        assert over_seeds(0, values).low is None and over_seeds(0, values).high is None


def test_means_are_taken_where_all_seeds_have_a_value(tmp_path: Path) -> None:
    folders = [write(tmp_path / "0", 0, (1.0, 2.0, 3.0)), write(tmp_path / "1", 1, (1.0, 4.0))]
    (group,) = read_groups(folders)
    found = means(group, lambda log: [(event.iteration, event.reward_mean) for event in log.evaluations])
    assert [(point.iteration, point.mean) for point in found] == [(0, 1), (5, 3)]


def test_the_measured_share_is_averaged_over_seeds(runs: list[Path]) -> None:
    shares = group_shares(read_groups(runs)[0])
    assert shares is not None and shares.measurements == 9
    assert shares.measured == pytest.approx([0.4, 0.6])
    assert (shares.low[0], shares.high[0]) == (pytest.approx(0.3), 0.5)


def test_a_seed_that_comes_twice_is_refused(runs: list[Path], tmp_path: Path) -> None:
    twin = write(tmp_path / "twin", 1, (1.0, 2.0))
    with pytest.raises(RunFolderError, match=r"twin: has the settings and the seed 1 of .*a-1"):
        read_groups([*runs, twin])


def test_too_many_configurations_are_refused(tmp_path: Path) -> None:
    folders = [write(tmp_path / str(n), 0, (1.0,), optim__learning_rate=n + 1.0) for n in range(9)]
    with pytest.raises(RunFolderError, match="9 different configurations"):
        read_groups(folders)


def test_patterns_stand_for_run_folders(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a-empty").mkdir()
    assert find_runs([str(tmp_path / "a-*")]) == runs[:3]
    assert find_runs([str(runs[1]), str(tmp_path / "a-*")]) == [runs[1], runs[0], runs[2]]
    monkeypatch.chdir(tmp_path)
    assert find_runs(["[ab]-0", "elsewhere"]) == [Path("a-0"), Path("b-0"), Path("elsewhere")]
    with pytest.raises(RunFolderError, match=r"x-\*: no run folder matches"):
        find_runs(["x-*"])


def test_final_pictures_are_matched_by_prompt(runs: list[Path]) -> None:
    groups = read_groups(runs)
    shown = finals([(group.first.folder, group.first.log) for group in groups], before=True)
    assert [row.prompt for row in shown.rows] == ["red apple", "red apple"] and not shown.problems
    assert [[one.iteration for one in row.pictures] for row in shown.rows] == [[0, 10, 10]] * 2
    assert finals([(runs[0], groups[0].first.log), (runs[0].parent, groups[1].first.log)], before=False).rows == []


def words(path: Path) -> str:
    page = path.read_text("utf-8")
    return re.sub(r"<[^>]+>", " ", page[page.index("<body>") :])


def test_the_page_compares_groups(runs: list[Path], tmp_path: Path) -> None:
    path = write_runs(runs, tmp_path / "out.html")
    page, said = path.read_text("utf-8"), " ".join(words(path).split())
    assert "uniform (credit.schedule=uniform) 3 seeds 1 \u2192 5 \u00b1 2.5 +400 % 10 2.0 s 0 of 3" in said
    assert "uniform (credit.schedule=native) 1 seed 1 \u2192 2 +100 % 10 2.0 s 0 of 1" in said
    assert "credit.schedule uniform native" in said
    assert page.count('class="area g0"') >= 2 and 'class="area g1"' not in page
    for title in ("Held-out judge", "Diversity", "Clip fraction"):
        assert (f"<h3>{title}</h3>" in page) is (title != "Clip fraction")
    assert page.count('class="enlarge"') == 6 and page.count("credit-bars") == 4 + page.count(".credit-bars")
    assert "not evaluated alike" not in said


def test_groups_of_other_rewards_are_marked(runs: list[Path], tmp_path: Path) -> None:
    other = write(tmp_path / "c", 0, (1.0, 2.0), reward=[{"name": "aesthetic"}])
    assert "see Settings: reward.0.name): compare shapes" in words(write_runs([*runs, other], tmp_path / "o.html"))


def test_runs_without_anything_give_a_page_of_notes(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        (folder / "events.jsonl").touch()
    page = write_runs(folders, tmp_path / "out.html").read_text("utf-8")
    assert page.count('class="note"') == 6 and "not evaluated yet" in page


def test_hostile_text_reaches_the_page_only_escaped(tmp_path: Path) -> None:
    folders = [
        write(tmp_path / f"{n}", 0, (1.0, 2.0, 3.0), prompt=ATTACK, name=f"{ATTACK}{n}", reward=[{"name": ATTACK * n}])
        for n in (1, 2)
    ]
    page = write_runs(folders, tmp_path / "out.html").read_text("utf-8")
    assert page.count("<script") == 1 and "<img src=x" not in page
    assert page.count("&lt;script&gt;hacked=1") > 10


@pytest.mark.parametrize("name", ["out.txt", "out", "folder.html"])
def test_only_a_page_is_written(runs: list[Path], tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(RunFolderError, match=r"let --output end in \.html"):
        write_runs(runs, tmp_path / name)
