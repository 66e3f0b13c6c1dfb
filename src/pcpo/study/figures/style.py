"""What all figures share: colours and marks that tell arms apart for colour-blind readers too, and saving."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from pcpo.data.files import atomic_path
from pcpo.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's; the baseline is grey.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
BASELINE = "#777777"
MARKS = "osD^vPX"
# More arms than this are drawn as rows, not as lines over one another.
FEW = 5
DPI = 130

Estimate = Mapping[str, Any]


def require_matplotlib() -> None:
    """Raise ConfigError that names the extra when matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError("matplotlib is not installed", where="figures", fix="pip install 'pcpo[study]'") from None


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG of 256 colours: a third of the size, and no difference to the eye."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI, format="png")
    with atomic_path(path) as temporary, Image.open(drawn) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(temporary, "PNG", optimize=True)
    return path


def palette(group: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Colour and mark of every arm: the same in all groups of a study that has few enough arms."""
    arms = group["order"] if len(group["order"]) <= len(COLOURS) else list(group["arms"])
    return colours_of(arms, group["baseline"])


def colours_of(arms: Sequence[str], baseline: str) -> tuple[dict[str, str], dict[str, str]]:
    """Arm -> colour, and arm -> mark; the baseline has grey circles."""
    others = [arm for arm in arms if arm != baseline]
    colours = {arm: COLOURS[n % len(COLOURS)] for n, arm in enumerate(others)} | {baseline: BASELINE}
    marks = {arm: MARKS[n % len(MARKS)] for n, arm in enumerate([baseline, *others])}
    return colours, marks


def plain(axis: Axes, title: str = "", size: float = 9.5) -> None:
    """Take away what is not data; title at the left."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(title, fontsize=size, loc="left")
    axis.tick_params(labelsize=8)
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set_fontsize(9)


def line(axis: Axes, x: Sequence[float], found: Sequence[Estimate], colour: str, **style: Any) -> None:
    """A line through means, with the band of the intervals where there are three seeds."""
    rows = [(place, e) for place, e in zip(x, found, strict=True) if e["mean"] is not None]
    if not rows:
        return
    axis.plot([place for place, _ in rows], [e["mean"] for _, e in rows], color=colour, **style)
    bands = [(place, e["low"], e["high"]) for place, e in rows if e["low"] is not None]
    if bands:
        places, low, high = zip(*bands, strict=True)
        axis.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)


def bar(axis: Axes, y: float, found: Estimate, colour: str, mark: str, *, hollow: bool = False) -> None:
    """A mean with its interval as a row at height y."""
    if found["mean"] is None:
        return
    if found["low"] is not None:
        axis.plot([found["low"], found["high"]], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
    axis.plot([found["mean"]], [y], mark, color=colour, markerfacecolor="white" if hollow else colour, markersize=6)


def wording(name: str) -> str:
    """A measure's name in words; a dollar sign would begin a formula."""
    held_out = name.startswith("held_out.")
    words = f"held out: {name.removeprefix('held_out.')}" if held_out else name.replace("_", " ")
    return words.replace("$", r"\$")


def name_of(group: Mapping[str, Any]) -> str:
    """Which model and which reward."""
    return f"{group['model']}, {group['reward'].replace('_', ' ')}"


def title_of(group: Mapping[str, Any]) -> str:
    """Which model, which reward, and how many seeds."""
    seeds = sorted({len(data["seeds"]) for data in group["arms"].values()})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return f"{group['model']}, {group['reward']} ({count} seed{'s' if count != '1' else ''}, 95 % intervals)"
