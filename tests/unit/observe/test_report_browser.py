"""The page in headless Chromium: what is drawn, in which colours, how it reacts, and what it refuses to run.

The browser is driven through its DevTools pipe, so that the checks look at the page as a reader gets it.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pcpo.observe.events import EventWriter, read_events
from pcpo.observe.report import write_report
from pcpo.observe.runs_page import write_runs

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
    "--remote-debugging-pipe",
)  # fmt: skip
# DevTools reads commands from descriptor 3 and answers on descriptor 4.
LAUNCH = "import os, sys; [os.dup2(int(sys.argv[n]), n + 2) for n in (1, 2)]; os.execvp(sys.argv[3], sys.argv[3:])"
ORANGE, BLUE, AMBER, SLATE, DARKEST = (198, 81, 2), (0, 105, 168), (230, 159, 0), (135, 147, 163), (8, 44, 88)


class Browser:
    """One Chromium with one tab."""

    def __init__(self, profile: Path) -> None:
        commands_out, commands_in = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in os.pipe())
        answers_out, answers_in = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in os.pipe())
        chromium = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(commands_out), str(answers_in), *chromium],
            pass_fds=(commands_out, answers_in),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands_out)
        os.close(answers_in)
        self.commands, self.answers = commands_in, answers_out
        self.rest, self.count, self.session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        tab = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events met on the way are kept."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self.read()).get("id") != self.count:
            self.events.append(answer)
        assert "error" not in answer, answer
        return dict(answer["result"])

    def read(self, seconds: float = 20.0) -> dict[str, Any]:
        """The next message."""
        while b"\0" not in self.rest:
            assert select.select([self.answers], [], [], seconds)[0], "the browser does not answer"
            part = os.read(self.answers, 1 << 16)
            assert part, "the browser has gone"
            self.rest += part
        line, _, self.rest = self.rest.partition(b"\0")
        return dict(json.loads(line))

    def open(self, path: Path, width: int = 1280, dark: bool = False) -> None:
        """Load a file at the given width, and wait for it."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.read())

    def ask(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def count_of(self, selector: str) -> int:
        """How many elements match."""
        return int(self.ask(f"document.querySelectorAll({json.dumps(selector)}).length"))

    def box(self, selector: str) -> dict[str, float]:
        """Where the first match stands on the page."""
        script = f"""(() => {{
            const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect();
            return {{x: r.x + scrollX, y: r.y + scrollY, width: r.width, height: r.height}} }})()"""
        return dict(self.ask(script))

    def picture(self, selector: str) -> np.ndarray:
        """The pixels of the first match, [H, W, 3]."""
        clip = {**self.box(selector), "scale": 1}
        data = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]
        return np.asarray(Image.open(BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)

    def complaints(self) -> list[str]:
        """Errors and policy violations that the page caused since it was opened."""
        self.ask("0")
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in kinds]

    def requests(self) -> list[str]:
        """Addresses asked for since the page was opened, data URIs aside."""
        sent = [event for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        urls = [event["params"]["request"]["url"] for event in sent]
        return [url for url in urls if not url.startswith("data:")]

    def close(self) -> None:
        """End the browser."""
        self.session = ""
        try:
            self.call("Browser.close")
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.commands)
            os.close(self.answers)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page(typical_run: Path) -> Path:
    return write_report(typical_run)


def pixels(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    """How many pixels have a colour, give or take what antialiasing changes."""
    return int((np.abs(picture - np.array(colour)).max(axis=-1) <= 6).sum())


def test_every_chart_is_drawn_with_all_its_marks(browser: Browser, page: Path, typical_run: Path) -> None:
    browser.open(page)
    log = read_events(typical_run / "events.jsonl")
    for kind in ("native", "target", "measured"):
        assert browser.count_of(f".wide .bar.{kind}") == 10
    assert browser.count_of(".wide .whisker") == 10
    assert browser.count_of(".wide .reward-curve circle.training") == len(log.iterations) == 12
    assert browser.count_of(".wide .reward-curve .mark.evaluation") == 3
    assert browser.count_of(".wide .clip-heatmap .cell") == sum(len(row.steps) for row in log.iterations) == 72
    assert browser.count_of(".small-chart") == 6
    assert browser.count_of(".stage") == 8
    assert browser.count_of(".filmstrip img") == 24
    now = "[...document.images].filter(i => i.loading !== 'lazy')"
    assert browser.ask(f"{now}.length === 16 && {now}.every(i => i.complete && i.naturalWidth === 64)")
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]


def test_every_drawing_is_labelled_for_readers_who_do_not_see_it(browser: Browser, page: Path) -> None:
    browser.open(page)
    unlabelled = "[...document.querySelectorAll('figure svg')].filter(s => !s.getAttribute('aria-label')).length"
    assert browser.ask(unlabelled) == 0
    assert browser.count_of("figure svg[role=img]") == browser.count_of("figure svg")
    marks = "[...document.querySelectorAll('.bar, .cell, .dot, .mark')].filter(e => e.closest('[role=img]'))"
    assert browser.ask(f"{marks}.length > 100 && {marks}.every(e => e.textContent)")
    assert browser.ask("[...document.querySelectorAll('input')].every(i => i.ariaLabel)")
    axes = "s => s.querySelectorAll('text.axis').length === 2"
    assert browser.ask(f"[...document.querySelectorAll('figure svg')].every({axes})")


def test_the_colours_of_every_series_are_on_the_screen(browser: Browser, page: Path) -> None:
    browser.open(page)
    curve = browser.picture(".wide .reward-curve")
    assert pixels(curve, BLUE) > 500 and pixels(curve, ORANGE) > 500
    bars = browser.picture(".wide .credit-bars")
    areas = {colour: pixels(bars, colour) for colour in (AMBER, SLATE, BLUE)}
    # The bars of each series add up to the same share, so they cover about the same area.
    assert min(areas.values()) > 3000
    assert max(areas.values()) < 1.25 * min(areas.values())
    assert pixels(browser.picture(".wide .clip-heatmap"), DARKEST) > 300


def test_the_tallest_bar_on_screen_is_the_largest_native_weight(browser: Browser, page: Path) -> None:
    browser.open(page)
    heights = browser.ask(
        "[...document.querySelectorAll('.wide .bar.native')].map(b => b.getBoundingClientRect().height)"
    )
    assert heights.index(max(heights)) == 9
    assert max(heights) / min(heights) == pytest.approx(24.2, rel=0.02)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_its_width_and_shows_one_drawing_of_each(
    browser: Browser, page: Path, width: int, dark: bool
) -> None:
    browser.open(page, width, dark)
    assert browser.ask("document.documentElement.scrollWidth") <= width
    shown, hidden = (".narrow", ".wide") if width == 390 else (".wide", ".narrow")
    assert browser.box(f"{shown} .reward-curve")["width"] > 0.8 * min(width, 1120)
    assert browser.box(f"{hidden} .reward-curve")["width"] == 0
    size = browser.ask(
        f"(() => {{ const t = document.querySelector('{shown} .tick'); "
        "return parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a })()"
    )
    assert size >= 9.5, "labels are too small to read"
    brightness = browser.picture("header").mean()
    assert brightness < 60 if dark else brightness > 200
    assert browser.complaints() == []


def halves(picture: np.ndarray) -> tuple[float, float]:
    """Mean saturation of the left and of the right half: the pictures are grey before and vivid after."""
    colour = picture.max(axis=-1) - picture.min(axis=-1)
    middle = colour.shape[1] // 2
    return float(colour[:, :middle].mean()), float(colour[:, middle:].mean())


def test_the_slider_uncovers_the_pictures_by_mouse_and_by_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.ask("document.querySelector('.stage').scrollIntoView({block: 'center'})")
    left, right = halves(browser.picture(".stage"))
    assert left < 25 < 60 < right, "before on the left, after on the right"

    at = browser.box(".stage")
    scroll = float(browser.ask("scrollY"))
    spot = {"x": at["x"] + 0.1 * at["width"], "y": at["y"] - scroll + at["height"] / 2, "button": "left"}
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, clickCount=1, **spot)
    cut = "parseFloat(document.querySelector('.stage').style.getPropertyValue('--cut'))"
    assert browser.ask(cut) == pytest.approx(10, abs=3)
    assert min(halves(browser.picture(".stage"))) > 40, "now almost all of it is after"

    before = browser.ask(cut)
    for _ in range(5):
        for kind in ("keyDown", "keyUp"):
            browser.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key="ArrowRight",
                code="ArrowRight",
                windowsVirtualKeyCode=39,
            )
    assert browser.ask(cut) == before + 5


def test_one_slider_moves_all(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.ask(
        "(() => { const all = document.getElementById('move-all'); all.value = 100; "
        "all.dispatchEvent(new Event('input')) })()"
    )
    assert browser.ask(
        "[...document.querySelectorAll('.stage')].every(s => s.style.getPropertyValue('--cut') === '100%')"
    )
    assert max(halves(browser.picture(".stage"))) < 25, "only before is left"


def press(browser: Browser, key: str) -> None:
    codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Escape": 27, "Enter": 13}
    text = {"text": "\r"} if key == "Enter" else {}
    for kind in ("keyDown", "keyUp"):
        more = text if kind == "keyDown" else {}
        browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key], **more)


@pytest.mark.parametrize("width", [390, 1280])
def test_a_picture_of_the_grid_is_enlarged_by_click_and_left_by_escape(
    browser: Browser, page: Path, typical_run: Path, width: int
) -> None:
    log = read_events(typical_run / "events.jsonl")
    browser.open(page, width)
    assert browser.count_of("dialog[open]") == 0
    caption = "document.querySelector('#zoom figcaption').textContent"
    browser.ask("document.querySelectorAll('.enlarge')[1].click()")
    middle = log.evaluations[1]
    assert browser.ask(caption) == f"a red apple: iteration 6, reward {middle.values[0]:.3g}"
    assert browser.box("#zoom img")["width"] > 0.7 * min(width, 560)
    assert browser.ask("document.documentElement.scrollWidth") <= width

    browser.ask("document.querySelector('[data-move=\"1 0\"]').click()")
    assert "iteration 12" in browser.ask(caption)
    press(browser, "ArrowRight")
    assert "iteration 12" in browser.ask(caption), "the last column is the end"
    press(browser, "ArrowDown")
    assert browser.ask(caption).startswith("a blue fish: iteration 12")
    large = "document.querySelector('#zoom img').src"
    assert browser.ask(f"{large} === document.querySelectorAll('.enlarge')[5].firstElementChild.src")
    press(browser, "Escape")
    assert browser.count_of("dialog[open]") == 0
    time.sleep(0.2)  # the dialog's close event comes after
    assert browser.ask("document.activeElement === document.querySelectorAll('.enlarge')[5]")
    assert browser.complaints() == []


def test_the_grid_is_one_stop_of_the_tab_key_and_unfolds_for_arrows(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.ask("[...document.querySelectorAll('.enlarge')].filter(b => b.tabIndex === 0).length") == 1
    browser.ask("document.querySelector('.enlarge').focus()")
    for _ in range(9):
        press(browser, "ArrowDown")
    focus = "document.activeElement"
    assert browser.ask(f"{focus} === [...document.querySelectorAll('.enlarge')].at(-3)")
    assert browser.ask(f"{focus}.closest('details').open")
    press(browser, "Enter")
    assert browser.count_of("dialog[open]") == 1


def test_hostile_text_is_shown_and_not_run(browser: Browser, tmp_path: Path) -> None:
    attack = "</script></style></title>\"'><script>hacked=1</script><img src=x onerror=hacked=1>"
    attack += "<svg onload=hacked=1>"
    Image.new("RGB", (64, 64), (9, 9, 9)).save(tmp_path / "p.png")
    with EventWriter(tmp_path / "events.jsonl") as writer:
        writer.write("run_start", run_name=attack, model=attack, config={attack: attack}, environment={attack: attack})
        for iteration in (0, 1, 2):
            writer.write(
                "evaluation", iteration=iteration, reward_mean=iteration, prompts=[attack], values=[1.0],
                pictures=["p.png"], rewards={attack: 1.0, "b": 2.0}, held_out={attack: 1.0}, monitors={attack: 1.0},
                monitors_per_prompt={attack: [1.0]}, diversity_features=attack,
            )  # fmt: skip
        writer.write("warning", message=attack)
    path = write_report(tmp_path)
    browser.open(path)
    browser.ask("document.querySelector('.enlarge').click()")
    time.sleep(0.2)
    assert browser.ask("typeof hacked") == "undefined"
    assert browser.ask("document.querySelector('#zoom figcaption').textContent").startswith(attack)
    assert (
        browser.count_of("script") == 1
        and browser.count_of("img") == 2 + 3 + 1
        and browser.count_of("svg[onload]") == 0
    )
    assert browser.ask("document.querySelector('h1').textContent") == attack
    assert browser.complaints() == []
    assert browser.requests() == [path.as_uri()]


def test_the_policy_stops_a_script_that_got_in_all_the_same(browser: Browser, page: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.html"
    injected = "<script>hacked=1</script><img src='https://example.invalid/x.png'></body>"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", injected), encoding="utf-8")
    browser.open(copy)
    assert browser.ask("typeof hacked") == "undefined"
    assert any("Content Security Policy" in complaint for complaint in browser.complaints())


def test_an_empty_run_shows_notes_and_no_empty_chart(
    browser: Browser, tmp_path: Path, make_run: Callable[..., Path]
) -> None:
    browser.open(write_report(make_run(tmp_path, iterations=0, evaluations=())))
    assert browser.count_of(".note") == 6
    assert browser.count_of(".reward-curve, .clip-heatmap, .small-chart") == 0
    assert browser.complaints() == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_of_several_runs_fits_its_width(
    browser: Browser, typical_run: Path, tmp_path: Path, make_run: Callable[..., Path], width: int, dark: bool
) -> None:
    other = make_run(tmp_path / "other", iterations=12, evaluations=(0, 12), pictures=8)
    log = (other / "events.jsonl").read_text("utf-8").replace('"schedule": "proportional"', '"schedule": "uniform"')
    (other / "events.jsonl").write_text(log, "utf-8")
    path = write_runs([typical_run, other], tmp_path / "runs.html")
    browser.open(path, width, dark)
    assert browser.ask("document.documentElement.scrollWidth") <= width
    shown = ".narrow" if width == 390 else ".wide"
    assert browser.count_of(f"{shown} .band-chart .line.group") == 2
    drawn = browser.picture(f"{shown} .band-chart")
    if not dark:
        assert pixels(drawn, BLUE) > 300 and pixels(drawn, ORANGE) > 150
    assert browser.count_of(".enlarge") == 24 and browser.count_of("th .ink") > 2
    browser.ask("document.querySelectorAll('.enlarge')[2].click()")
    assert "iteration 12" in browser.ask("document.querySelector('#zoom figcaption').textContent")
    assert browser.complaints() == [] and browser.requests() == [path.as_uri()]
