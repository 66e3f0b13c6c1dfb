"""A hundred texts that carry scripts, as prompts and names, in every page and card: Chromium runs none of them."""

from __future__ import annotations

import html
import re
import shutil
import subprocess

import pytest
import torch
from markdown_it import MarkdownIt

from pcpo.data.images import save_png
from pcpo.data.prompts import Prompt
from pcpo.evaluation.side_by_side import SideBySide, write_comparison
from pcpo.observe.events import EventWriter
from pcpo.observe.markdown import escape
from pcpo.observe.report import write_report
from pcpo.observe.runs_page import write_runs
from pcpo.study.tables import also, ends
from security.xss import RUN, TEXTS
from training import pictures

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")
# Clicks on every link and button too, and writes what happened where --dump-dom shows it.
PROBE = """
document.querySelectorAll('a, button, input, summary').forEach(e => { try { e.focus(); e.click() } catch (_) {} });
setTimeout(() => document.documentElement.setAttribute('data-hacked', String(window.hacked === 1)), 300);
"""
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">')


def ran(page, folder):
    """Whether anything on the page set `window.hacked`, its policy taken out: the escaping has to do it alone."""
    probed = folder / "probed.html"
    bare = POLICY.sub("", page).replace("</html>", f"<script>{PROBE}</script></html>")
    probed.write_text(bare if "</html>" in bare else f"{bare}<script>{PROBE}</script>", "utf-8")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--virtual-time-budget=3000",
        "--dump-dom",
    ]
    command = [str(CHROMIUM), *flags, f"--user-data-dir={folder / 'profile'}", probed.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    answer = re.search(r'data-hacked="(true|false)"', done.stdout)
    assert answer, done.stdout[-500:] + done.stderr[-500:]
    return answer[1] == "true"


def policy(page):
    """The page's Content-Security-Policy by directive."""
    found = POLICY.search(page)
    assert found, "no policy"
    assert page.index(found[0]) < page.index("<style")
    parts = (part.split() for part in html.unescape(found[1]).split(";"))
    return {name: words for name, *words in parts}


def rendered(markdown):
    """Markdown as the most trusting renderer shows it: raw HTML let through."""
    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    return f"<!doctype html><html><body>{body}</body></html>"


def write_log(folder, name, seed):
    """A run whose every text is hostile: names, settings, prompts, rewards, warnings, picture names."""
    folder.mkdir()
    save_png(pictures(1)[0], folder / "p.png")
    config = {text: text for text in TEXTS} | {"run": {"seed": seed}, "name": name}
    words = dict.fromkeys(("run_name", "model", "algorithm", "reward"), name)
    with EventWriter(folder / "events.jsonl") as events:
        events.write("run_start", **words, config=config, environment=config)
        for n, text in enumerate(TEXTS):
            events.write("warning", message=text)
            events.write("iteration", iteration=n + 1, reward_mean=0.1 * n, rewards={text: 1.0}, seconds={text: 1.0})
            events.write(
                "evaluation", iteration=n, reward_mean=1.0, rewards={text: 1.0, "b": 2.0}, held_out={text: 1.0},
                prompts=TEXTS, values=[1.0] * len(TEXTS), pictures=["p.png", text] * (len(TEXTS) // 2), sheet=text,
            )  # fmt: skip
        events.write("run_end", reason=name)
    return folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Every page that holds prompts or names."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [write_log(folder / f"run{n}", TEXTS[n], n) for n in range(2)]
    shown = pictures(len(TEXTS), 8, 8)
    prompts = [Prompt(text, {}, str(n)) for n, text in enumerate(TEXTS)]
    values = {name: {TEXTS[5]: torch.ones(len(TEXTS))} for name in TEXTS[:2]}
    nothing = {"mean": None, "n": 0}
    arm = {"seeds": [0], "end": nothing, "end_against_baseline": nothing, "difference": {}, "also": {}}
    changed = {"difference": {f"model.{text}": (text, text) for text in TEXTS}, "also": dict.fromkeys(TEXTS, nothing)}
    group = {"arms": {"a": arm, "b": arm | changed}, "baseline": "a"}
    settings = {"count": 1, "steps": 1, "guidance_scale": 1.0, "seed": 0}
    side = SideBySide(prompts, 1, settings, dict.fromkeys(TEXTS[:2], shown), values)
    return {
        "report": write_report(runs[0]).read_text("utf-8"),
        "runs": write_runs(runs, folder / "runs.html").read_text("utf-8"),
        "compare": write_comparison(side, folder / "compare").read_text("utf-8"),
        "card": rendered(
            "\n\n".join(f"# {escape(text)}\n\n| a | b |\n| --- | --- |\n| x | {escape(text)} |" for text in TEXTS)
        ),
        "study": rendered(ends(group) + also(group)),
    }


@chromium
def test_the_browser_runs_such_texts_where_they_are_markup(tmp_path):
    assert ran(f"<!doctype html><html><body>{TEXTS[0]}</body></html>", tmp_path)
    assert ran(rendered(f"[click](javascript:{RUN}) <script>{RUN}</script>"), tmp_path)


@chromium
@pytest.mark.parametrize("name", ["report", "runs", "compare", "card", "study"])
def test_nothing_runs(pages, tmp_path, measured, name):
    assert not ran(pages[name], tmp_path)
    measured("markup", **{name: {"texts": len(TEXTS), "executed": 0}})


@pytest.mark.parametrize("name", ["report", "runs", "compare"])
def test_pages_have_a_policy(pages, name):
    found = policy(pages[name])
    assert found["default-src"] == ["'none'"] and found["img-src"] == ["data:"]
    assert found["base-uri"] == found["form-action"] == ["'none'"]
    for kind in ("script-src", "style-src"):
        assert all(word == "'none'" or word.startswith("'sha256-") for word in found[kind])


@pytest.mark.parametrize("name", ["card", "study"])
def test_markdown_holds_no_element_and_no_link_of_a_stranger(pages, name):
    assert not re.search(
        r"<(script|img|svg|a|iframe|form|object|embed|style|meta|link|base|input)\b", pages[name], re.I
    )
