"""Evaluation pictures for the report: which ones, and as small as the page's budget asks."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from pcpo.data.images import load_image, to_pil
from pcpo.data.untrusted import inside
from pcpo.errors import ImageError
from pcpo.observe.records import Evaluation, RunLog

MAX_PICTURES = 24
MAX_GRID_ROWS = 16
MAX_GRID_COLUMNS = 8
GRID_SIDE = 256
GRID_BYTES = 9_000
FINAL_SIDE = 320
BUDGET = 2_900_000
"""Bytes for all pictures before base64, which adds a third: the page stays below 5 MB with its charts."""


@dataclass(frozen=True)
class Shown:
    """One evaluation picture as a data URI, and its size (width, height) before it was made small."""

    iteration: int
    value: float | None
    uri: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Pair:
    """The first and the last picture of one prompt and noise."""

    prompt: str
    before: Shown
    after: Shown


@dataclass(frozen=True)
class Row:
    """One prompt and noise along the evaluations."""

    prompt: str
    pictures: list[Shown]


@dataclass(frozen=True)
class Gallery:
    """What the report shows.

    rows of the grid hold one prompt and noise each, with a picture for each of `iterations`.
    """

    pairs: list[Pair]
    available: int
    iterations: list[int]
    rows: list[Row]
    problems: list[str]


@dataclass(frozen=True)
class Finals:
    """The same prompts and noises at the end of several runs; before: the first picture of a row is from before."""

    before: bool
    rows: list[Row]
    problems: list[str]


def spaced(count: int, limit: int) -> list[int]:
    """At most `limit` of the indices 0..count-1, evenly spaced, with both ends: none chosen by its looks."""
    if count <= limit:
        return list(range(count))
    return [round(index * (count - 1) / (limit - 1)) for index in range(limit)]


def gallery(run_dir: Path, log: RunLog) -> Gallery | None:
    """Choose and encode pictures of the first, the last and some evaluations between; None if there is none.

    A picture that is missing, damaged or outside the run folder is left out, and `problems` says so.
    """
    evaluations = [event for event in log.evaluations if _paths(event)]
    if not evaluations:
        return None
    first, last = evaluations[0], evaluations[-1]
    available = min(len(_paths(first)), len(_paths(last)))
    chosen = spaced(available, MAX_PICTURES)
    stations = [evaluations[index] for index in spaced(len(evaluations), MAX_GRID_COLUMNS)]
    numbers = [chosen[index] for index in spaced(len(chosen), MAX_GRID_ROWS)] if len(stations) > 2 else []
    thumbs = len(numbers) * len(stations)
    budget = (BUDGET - thumbs * GRID_BYTES) // max(2 * len(chosen), 1)
    reader = _Reader(run_dir.resolve())
    pairs = []
    for index in chosen:
        before = reader.show(first, index, 384, budget)
        after = before if last is first else reader.show(last, index, 384, budget)
        if before and after:
            pairs.append(Pair(_prompt(last, index), before, after))
    rows = []
    for index in numbers:
        along = [reader.show(event, index, GRID_SIDE, GRID_BYTES) for event in stations]
        whole = [shown for shown in along if shown]
        if len(whole) == len(stations):
            rows.append(Row(_prompt(last, index), whole))
    return Gallery(pairs, available, [event.iteration for event in stations], rows, reader.problems)


def finals(runs: Sequence[tuple[Path, RunLog]], *, before: bool) -> Finals:
    """Pictures of every run's last evaluation that all of them have, matched by prompt and place.

    `before` puts a picture of the first run's first evaluation at the start of each row.
    """
    found = [
        (_Reader(folder.resolve()), log.evaluations[place])
        for number, (folder, log) in enumerate(runs)
        for place in ([0, -1] if before and number == 0 else [-1])
        if log.evaluations and log.evaluations[place].pictures
    ]
    if len(found) < len(runs) + before:
        return Finals(before, [], [])
    places = [_places(event) for _, event in found]
    common = [key for key in places[0] if all(key in of_run for of_run in places)]
    chosen = [common[index] for index in spaced(len(common), MAX_GRID_ROWS)]
    budget = BUDGET // max(len(chosen) * len(found), 1)
    rows = []
    for key in chosen:
        along = [
            reader.show(event, of_run[key], FINAL_SIDE, budget)
            for (reader, event), of_run in zip(found, places, strict=True)
        ]
        whole = [shown for shown in along if shown]
        if len(whole) == len(found):
            rows.append(Row(key[0], whole))
    return Finals(before, rows, [problem for reader, _ in found for problem in reader.problems])


def _places(event: Evaluation) -> dict[tuple[str, int], int]:
    """(prompt, how often it came before) -> index of its picture."""
    places: dict[tuple[str, int], int] = {}
    for index in range(len(event.pictures)):
        prompt, count = _prompt(event, index), 0
        while (prompt, count) in places:
            count += 1
        places[prompt, count] = index
    return places


def _paths(event: Evaluation) -> Sequence[str]:
    """The single pictures, or the sheet as one picture when only that was kept."""
    return event.pictures or ([event.sheet] if event.sheet else [])


def _prompt(event: Evaluation, index: int) -> str:
    """The prompt of a picture. A prompt drawn several times may be listed once: pictures are prompt-major."""
    if not event.pictures:
        return "all evaluation pictures"
    each = max(1, len(event.pictures) // max(len(event.prompts), 1))
    position = index // each
    return event.prompts[position] if position < len(event.prompts) else ""


class _Reader:
    """Loads and encodes pictures of one run folder, and remembers what could not be shown."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problems: list[str] = []

    def show(self, event: Evaluation, index: int, side: int, budget: int) -> Shown | None:
        name = _paths(event)[index] if index < len(_paths(event)) else ""
        try:
            picture = to_pil(load_image(inside(self.root, name)))
            uri = data_uri(picture, side, budget)
        except (ImageError, OSError, ValueError) as error:
            problem = error.what if isinstance(error, ImageError) else str(error)
            self._report(f"picture {name!r} is not shown: {problem}")
            return None
        value = event.values[index] if index < len(event.values) and event.pictures else None
        return Shown(event.iteration, value, uri, picture.size)

    def _report(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


def data_uri(picture: Image.Image, side: int, budget: int) -> str:
    """Encode as lossless PNG if that fits the budget in bytes, else as JPEG of falling quality, then size."""
    if max(picture.size) > side:
        picture = picture.copy()
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    data, kind = _encode(picture, "PNG", optimize=True), "png"
    quality = 90
    while len(data) > budget and max(picture.size) > 32:
        data, kind = _encode(picture, "JPEG", quality=quality, optimize=True), "jpeg"
        if quality > 60:
            quality -= 10
        else:
            picture = picture.resize((max(1, picture.width * 3 // 4), max(1, picture.height * 3 // 4)))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()
