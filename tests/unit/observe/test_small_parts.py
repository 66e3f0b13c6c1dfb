"""Numbers, markup, scales, environment and tracker names."""

from __future__ import annotations

import getpass
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcpo.errors import ConfigError
from pcpo.observe.environment import environment
from pcpo.observe.markup import Safe, element, escape
from pcpo.observe.numbers import number, percent, relative_change
from pcpo.observe.svg import Scale, fit
from pcpo.observe.trackers import scalars, tracking


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "n/a"), (0.0, "0"), (45.789, "45.79"), (0.01, "0.01"), (1.234e-5, "1.234e-5"), (2e-7, "2e-7"),
        (12345.6, "12,346"), (3.2e9, "3.2e9"), (-0.5, "-0.5"), (999_999.7, "1,000,000"),
    ],
)  # fmt: skip
def test_number(value: float | None, words: str) -> None:
    assert number(value) == words


@pytest.mark.parametrize(
    ("value", "words"), [(0.4974, "49.7 %"), (0.0, "0 %"), (1.5, "150 %"), (0.0012, "0.12 %"), (None, "n/a")]
)
def test_percent(value: float | None, words: str) -> None:
    assert percent(value) == words


def test_relative_change_is_of_the_starting_magnitude() -> None:
    assert relative_change(-2.0, -1.0) == 0.5
    assert relative_change(0.0, 1.0) is None
    assert relative_change(None, 1.0) is None


@given(st.text())
def test_escaped_text_cannot_close_an_attribute_or_open_an_element(text: str) -> None:
    assert not set(escape(text)) & set("<>\"'")
    escape(text).encode("utf-8")


def test_text_is_escaped_and_markup_is_kept() -> None:
    inner = element("b", "1 < 2")
    assert element("p", inner, " & ", None, ["x", 3]) == "<p><b>1 &lt; 2</b> &amp; x3</p>"
    assert element("input", aria_label='"quoted"', disabled=True, class_="a", title=None) == (
        '<input aria-label="&quot;quoted&quot;" disabled class="a">'
    )
    assert escape("\ud800\x1b") == "\ufffd\ufffd"
    assert isinstance(inner, Safe)


@given(st.floats(-1e12, 1e12), st.floats(1e-9, 1e12), st.integers(2, 10))
def test_ticks_lie_in_the_range_and_are_about_as_many_as_asked(low: float, width: float, count: int) -> None:
    scale = fit([low, low + width], 0, 100)
    ticks = scale.ticks(count)
    air = 1e-6 * (scale.hi - scale.lo)
    assert 1 <= len(ticks) <= 2 * count + 2
    assert all(scale.lo - air <= tick <= scale.hi + air for tick in ticks)


def test_a_scale_maps_its_ends_to_the_pixels_given_and_holds_values_outside() -> None:
    scale = Scale(10, 20, 100, 0)
    assert (scale(10), scale(15), scale(20), scale(99)) == (100, 50, 0, 0)
    log = Scale(1e-6, 1e-2, 0, 100, log=True)
    assert log(1e-4) == pytest.approx(50)
    assert log.ticks() == pytest.approx([1e-2, 1e-3, 1e-4, 1e-5, 1e-6])


@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0], [1e-300], [-1e300, 1e300]])
def test_a_scale_around_any_values_has_a_width(values: list[float]) -> None:
    scale = fit(values, 0, 100)
    assert scale.lo < scale.hi
    assert all(0 <= scale(value) <= 100 for value in values)


def test_the_environment_names_versions_but_not_who_and_where() -> None:
    described = environment()
    assert described["python"] == platform.python_version()
    assert described["torch"].startswith("2.")
    told = " ".join(map(str, described.values()))
    assert platform.node() not in told.split()
    secrets = {value for name, value in os.environ.items() if name in ("USER", "HOME", "HOSTNAME", "PATH")}
    assert not any(secret in told for secret in secrets | {getpass.getuser()} if len(secret) > 3)


def test_the_environment_does_not_import_the_libraries_it_names() -> None:
    code = "import sys; import pcpo.observe.environment as e; e.environment(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


def test_trackers_get_the_scalars_of_an_event_under_known_names() -> None:
    event = {
        "type": "iteration", "iteration": 4, "reward_mean": 0.5, "grad_norm": None, "steps": [0, 1],
        "rewards": {"clip": 0.2}, "seconds": {"update": 1.5},
    }  # fmt: skip
    assert scalars(event) == {"train/reward_mean": 0.5, "train/rewards/clip": 0.2, "train/seconds/update": 1.5}
    assert scalars({"type": "evaluation", "iteration": 4, "reward_mean": 0.5}) == {"eval/reward_mean": 0.5}
    assert scalars({"type": "warning", "message": "x"}) == {}


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install wandb"), tracking("wandb", "run", tmp_path):
        pass


def test_tensorboard_writes_below_the_run_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with tracking("tensorboard", "run", tmp_path) as send:
        send({"type": "evaluation", "iteration": 4, "reward_mean": 0.5})
        send({"type": "warning", "message": "x"})
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))
