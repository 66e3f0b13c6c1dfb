"""One row of pictures per arm of a study: what the runs of one seed draw at the end, from the same noises.

    python benchmarks/pictures.py runs/stability --model emoji-sd --output docs/results/stability/pictures-emoji-sd.png

The study's runs must still have their evaluation pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from pcpo.observe.events import read_events
from pcpo.study.runner import open_study


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="the folder of a study with one reward")
    parser.add_argument("--model", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=12, help="pictures in a row")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    rows = {}
    for cell in open_study(args.study)[1]:
        wanted = (cell.model, cell.seed) == (args.model, args.seed)
        if not wanted or not (cell.folder / "events.jsonl").is_file():
            continue
        first, *_, last = read_events(cell.folder / "events.jsonl").evaluations
        for name, event in (("before", first), (cell.arm, last)):
            rows[name] = [Image.open(cell.folder / path) for path in event.pictures[: args.count]]
    draw(rows, args.output)


def draw(rows: dict[str, list[Image.Image]], path: Path) -> None:
    width = max(len(row) for row in rows.values())
    figure = Figure(figsize=(0.6 * width + 0.9, 0.62 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), width, squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis in line:
            axis.axis("off")
        for axis, picture in zip(line, pictures, strict=False):
            axis.imshow(picture)
        line[0].text(-0.15, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
    figure.savefig(path, dpi=100)
    print(path)


if __name__ == "__main__":
    main()
