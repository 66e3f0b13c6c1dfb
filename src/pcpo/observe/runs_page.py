"""One page about several runs: groups of seeds side by side, in curves, credit, settings and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pcpo.data.files import write_bytes_atomic
from pcpo.observe.band_charts import band_chart
from pcpo.observe.charts import credit_bars
from pcpo.observe.console import duration
from pcpo.observe.document import document
from pcpo.observe.grid import cell, picture_table, zoom
from pcpo.observe.groups import Curve, Group, differences, group_shares, means, read_groups
from pcpo.observe.layout import NARROW, WIDE, clipped, legend, line_swatch, note, section, swatch
from pcpo.observe.markup import Safe, element
from pcpo.observe.numbers import number, percent, relative_change
from pcpo.observe.pictures import Finals, finals
from pcpo.observe.records import RunLog
from pcpo.observe.report import page_path
from pcpo.observe.series import mean
from pcpo.observe.signs import LABELS, signs
from pcpo.observe.tables import warnings

HALF = 520


def write_runs(folders: Sequence[Path], output: str | Path) -> Path:
    """Write one page about run folders (see `find_runs`) and return its path; it needs no server.

    Raises RunFolderError for a run that cannot be read, and for an output that is no .html file.
    """
    path = page_path(output)
    write_bytes_atomic(path, page(read_groups(folders)).encode("utf-8"))
    return path


def page(groups: Sequence[Group]) -> str:
    """The whole document."""
    runs = sum(len(group.runs) for group in groups)
    one_model = "model.path" not in differences(groups)
    shown = finals([(group.first.folder, group.first.log) for group in groups], before=one_model)
    names = [group.name for group in groups]
    return document(
        f"PCPO runs: {clipped(', '.join(names))}",
        element(
            "header",
            element("p", "PCPO runs", class_="over"),
            element("h1", clipped(" and ".join(names) if len(names) < 3 else f"{len(names)} configurations")),
            element("p", f"{runs} runs. Runs that differ in nothing but the seed are one group.", class_="headline"),
        ),
        element(
            "main",
            summary(groups),
            reward(groups),
            curves(groups),
            pictures(groups, shown),
            credit(groups),
            settings(groups),
            warnings(shown.problems),
        ),
        element("footer", element("p", "Written by pcpo report from these runs' logs.")),
        script="report.js",
    )


def _evaluated(log: RunLog) -> list[tuple[int, float | None]]:
    return [(event.iteration, event.reward_mean) for event in log.evaluations]


def _monitor(name: str) -> Curve:
    return lambda log: [(event.iteration, event.monitors.get(name)) for event in log.evaluations]


def _held_out(name: str) -> Curve:
    return lambda log: [(event.iteration, event.held_out.get(name)) for event in log.evaluations]


def _names(groups: Sequence[Group]) -> list[Safe]:
    """Legend entries: the line of every group with its number of seeds."""
    return [line_swatch(f"line group g{place}", f"{group.name}: {group.seeds}") for place, group in enumerate(groups)]


def summary(groups: Sequence[Group]) -> Safe:
    """Reward before and after with intervals, time, and how many runs have a warning sign."""
    rows = []
    for place, group in enumerate(groups):
        found = means(group, _evaluated)
        if found:
            first, last = found[0], found[-1]
            change = relative_change(first.mean, last.mean)
            spread = f" \u00b1 {number(last.high - last.mean, 2)}" if last.high is not None else ""
            cells = [
                f"{number(first.mean)} \u2192 {number(last.mean)}{spread}",
                percent(change, signed=True) if change is not None else "n/a",
                str(last.iteration),
            ]
        else:
            cells = ["not evaluated yet", "", ""]
        seconds = mean([row.seconds.get("total") for run in group.runs for row in run.log.iterations])
        alarmed = sum(bool(signs(run.log).alarms()) for run in group.runs)
        cells += [duration(seconds) if seconds is not None else "n/a", f"{alarmed} of {len(group.runs)}"]
        head = element("th", element("b", "\u25cf", class_=f"ink g{place}"), f" {clipped(group.name, 80)}", scope="row")
        rows.append(element("tr", head, element("td", group.seeds), [element("td", cell) for cell in cells]))
    titles = ("configuration", "seeds", "evaluation reward", "change", "iteration", "per iteration", "warning signs")
    head = element("tr", [element("th", title, scope="col") for title in titles])
    table = element("table", element("thead", head), element("tbody", rows), class_="figures short")
    several = any(len(group.runs) > 2 for group in groups)
    return section(
        "In figures",
        element(
            "p",
            "Means over seeds at the last evaluation that all runs of a group have",
            "; \u00b1: 95 % t interval." if several else ". Intervals need three seeds.",
        ),
        element("div", table, class_="scroll"),
        _unlike(groups),
    )


def _unlike(groups: Sequence[Group]) -> Safe | None:
    """A note where curves are not on one scale."""
    unlike = [
        key
        for key in differences(groups)
        if key.startswith(("reward.", "evaluation.")) or key in ("prompts", "reward", "held_out", "model.path")
    ]
    if not unlike:
        return None
    keys = ", ".join(unlike[:4]) + (" ..." if len(unlike) > 4 else "")
    return note(f"These groups were not evaluated alike (see Settings: {keys}): compare shapes, not heights.")


def reward(groups: Sequence[Group]) -> Safe:
    """Evaluation reward over iterations."""
    wide, narrow = (band_chart(groups, _evaluated, "reward", width, 360) for width in (WIDE, NARROW))
    drawn = note("No evaluation has been logged yet.")
    if wide is not None and narrow is not None:
        drawn = element("figure", element("div", wide, class_="wide"), element("div", narrow, class_="narrow"))
    return section(
        "Evaluation reward",
        element(
            "p",
            "Line: mean over seeds. Band: 95 % t interval, from three seeds on. Two seeds: thin lines beside it.",
        ),
        legend(*_names(groups)),
        drawn,
    )


def curves(groups: Sequence[Group]) -> Safe:
    """Everything beside the evaluation reward, small."""
    logs = [run.log for group in groups for run in group.runs]
    monitors = list(dict.fromkeys(name for log in logs for event in log.evaluations for name in event.monitors))
    kept_out = list(dict.fromkeys(name for log in logs for event in log.evaluations for name in event.held_out))
    wanted: list[tuple[str, Curve]] = [
        *((f"Held-out {name}", _held_out(name)) for name in kept_out),
        *((LABELS.get(name, name).capitalize(), _monitor(name)) for name in monitors),
        ("Training reward", lambda log: [(row.iteration, row.reward_mean) for row in log.iterations]),
        ("Clip fraction", lambda log: [(row.iteration, row.clip_fraction) for row in log.iterations]),
        ("Gradient norm", lambda log: [(row.iteration, row.grad_norm) for row in log.iterations]),
        ("KL to the sampling policy", lambda log: [(row.iteration, row.approx_kl) for row in log.iterations]),
    ]
    figures = []
    for title, curve in wanted:
        drawn = band_chart(groups, curve, "mean", 360, 190)
        if drawn is not None:
            figures.append(element("figure", element("h3", clipped(title)), drawn))
    if not figures:
        return section("Beside the reward", note("No iteration has been logged yet."))
    return section("Beside the reward", legend(*_names(groups)), element("div", figures, class_="multiples"))


def pictures(groups: Sequence[Group], shown: Finals) -> Safe:
    """The last evaluation's pictures of every group's first seed, the same prompts and noises side by side."""
    if not shown.rows:
        return section("Final pictures", note("These runs have no evaluation pictures of the same prompts."))
    heads = [element("span", "before")] if shown.before else []
    whats = ["before training"] if shown.before else []
    for place, group in enumerate(groups):
        seed = f"seed {group.first.seed}" if group.first.seed is not None else clipped(group.first.folder.name, 40)
        mark = element("b", "\u25cf", class_=f"ink g{place}")
        heads.append(element("span", mark, f" {clipped(group.name, 60)}, {seed}"))
        whats.append(f"{group.name}, {seed}")
    rows = [
        (
            row.prompt,
            [
                cell(one, row.prompt, f"{what}, iteration {one.iteration}")
                for one, what in zip(row.pictures, whats, strict=True)
            ],
        )
        for row in shown.rows
    ]
    return section(
        "Final pictures",
        element(
            "p", "The last evaluation of each group's lowest seed; same prompt and noise along a row. Click to enlarge."
        ),
        picture_table("prompt", heads, rows),
        zoom(),
    )


def credit(groups: Sequence[Group]) -> Safe:
    """Credit and measured gradient share per step, side by side on one scale."""
    found = [(group, group_shares(group)) for group in groups]
    highest = max((value for _, s in found if s for value in (*s.native, *s.target, *s.measured, *s.high)), default=0.0)
    figures = []
    for place, (group, shares) in enumerate(found):
        wide = credit_bars(shares, HALF, highest) if shares else None
        narrow = credit_bars(shares, NARROW, highest) if shares else None
        drawn = note("The log has no credit schedule.")
        if wide is not None and narrow is not None:
            drawn = element("div", element("div", wide, class_="wide"), element("div", narrow, class_="narrow"))
        title = element("h3", element("b", "\u25cf", class_=f"ink g{place}"), f" {clipped(group.name, 80)}")
        figures.append(element("figure", title, drawn))
    return section(
        "Credit per sampling step",
        element(
            "p", "Each step's share of the total credit; the gradient share is measured, mean over seeds and range."
        ),
        legend(
            swatch("bar native", "native weight"),
            swatch("bar target", "target"),
            swatch("bar measured", "measured gradient share"),
        ),
        element("div", figures, class_="halves"),
    )


def settings(groups: Sequence[Group]) -> Safe:
    """Settings in which the groups differ."""
    found = differences(groups)
    if not found:
        return section("Settings", note("There is one configuration: nothing differs but the seed."))
    head = [element("th", "setting", scope="col"), *(element("th", clipped(g.name, 60), scope="col") for g in groups)]
    rows = [
        element("tr", element("th", key, scope="row"), [element("td", value) for value in values])
        for key, values in found.items()
    ]
    table = element("table", element("thead", element("tr", head)), element("tbody", rows), class_="figures")
    return section(
        "Settings",
        element("p", "Those that differ; all others are the same."),
        element("div", table, class_="scroll"),
    )


__all__ = ["page", "write_runs"]
