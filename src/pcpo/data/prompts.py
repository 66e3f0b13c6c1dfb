"""Prompts: a list, a text file, a JSON-lines file, or a set that ships with the package."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import stat
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from pcpo.errors import PromptError

MAX_PROMPT_CHARS = 2_000
MAX_JSON_LINE_CHARS = 65_536
MAX_FILE_BYTES = 64 * 2**20
MAX_ID_CHARS = 200
SUFFIXES = (".txt", ".jsonl")


@dataclass(frozen=True)
class Prompt:
    """A text, what its file says about it (handed to rewards as metadata), and an id unique in its set."""

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    id: str = ""


def embedded_prompt_sets() -> dict[str, Path]:
    """Name -> file of every prompt set that ships with the package, sorted by name."""
    folder = Path(str(resources.files("pcpo"))) / "assets" / "prompts"
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES}


def load_prompts(source: str | os.PathLike[str] | Sequence[str]) -> list[Prompt]:
    """Read prompts from any source; the order is kept and repeated prompts are allowed.

    - a list of strings
    - ``*.txt``: UTF-8, one prompt a line; blank lines and lines that start with ``#`` are skipped
    - ``*.jsonl``: UTF-8, one object a line with ``"prompt"``; ``"id"`` is optional, the other keys
      become metadata
    - the name of an embedded set, see `embedded_prompt_sets`

    An id that is not given is the place in the list: ``p0``, ``p1``, ...

    Raises PromptError, with file and line, for a file that is missing, no regular file, empty, over
    64 MiB or not UTF-8; a prompt that is empty, over 2,000 characters or holds control characters; a line
    that is not a JSON object with a string under "prompt"; an id that is used twice; an unknown set.
    """
    if isinstance(source, os.PathLike):
        return _load_file(Path(source))
    if isinstance(source, str):
        sets = embedded_prompt_sets()
        if source in sets:
            return _load_file(sets[source])
        if source.endswith(SUFFIXES) or "/" in source or os.sep in source:
            return _load_file(Path(source))
        _refuse_unknown_set(source, list(sets))
    if not isinstance(source, Sequence) or isinstance(source, bytes | bytearray):
        raise PromptError(
            f"prompts come as {type(source).__name__}",
            fix="give a list of strings, a file or the name of a set",
        )
    rows: Iterator[Row] = ((f"prompt list, item {number}", text, {}) for number, text in enumerate(source))
    return _collect(rows, where="prompt list")


def hold_out(prompts: Sequence[Prompt], share: float) -> tuple[list[Prompt], list[Prompt]]:
    """Split into (training, held out): a prompt is held out when the SHA-256 of its text, over 2^256, is below share.

    So the choice depends on the text alone: not on the order, not on the other prompts, and a text that comes twice is
    on one side. Raises PromptError when a side would be empty.
    """
    sides: tuple[list[Prompt], list[Prompt]] = [], []
    for prompt in prompts:
        digest = hashlib.sha256(prompt.text.encode("utf-8")).digest()
        sides[int.from_bytes(digest, "big") < share * 2**256].append(prompt)
    if not all(sides):
        raise PromptError(
            f"held_out {share:g} of {len(prompts)} prompts leaves none {'to hold out' if sides[0] else 'to train on'}",
            where="held_out",
            fix="use more prompts, another share, or a file of its own as evaluation.prompts",
        )
    return sides


def _refuse_unknown_set(name: str, known: list[str]) -> NoReturn:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    listed = ", ".join(known) or "none"
    raise PromptError(
        f"unknown prompt set {name[:80]!r}",
        fix=f"{hint}sets: {listed}; or give a .txt or .jsonl file",
    )


def _load_file(path: Path) -> list[Prompt]:
    if path.suffix not in SUFFIXES:
        raise PromptError(f"file type {path.suffix!r} is not known", where=str(path), fix="use a .txt or a .jsonl file")
    lines = _read_lines(path)
    rows = _rows_of_text(path, lines) if path.suffix == ".txt" else _rows_of_json(path, lines)
    return _collect(rows, where=str(path))


def _read_lines(path: Path) -> list[str]:
    """Check size and kind before reading, and bound the read too: a file can grow after it was measured."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise PromptError(f"is {kind}", where=str(path), fix="give a .txt or .jsonl file")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1) if status.st_size <= MAX_FILE_BYTES else None
    except FileNotFoundError as error:
        raise PromptError("no such file", where=str(path), fix="check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise PromptError(f"cannot be read ({reason})", where=repr(str(path)[:200]), fix="check the path") from error
    if data is None or len(data) > MAX_FILE_BYTES:
        limit = MAX_FILE_BYTES // 2**20
        raise PromptError(f"is larger than {limit} MiB", where=str(path), fix="split or shorten the file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PromptError(
            f"is not UTF-8 (byte 0x{data[error.start]:02x})", where=f"{path}:{line}", fix="save it as UTF-8"
        ) from error
    # not splitlines(): it also splits at characters that may stand inside a prompt, such as U+2028
    return [line.removesuffix("\r") for line in text.split("\n")]


Row = tuple[str, Any, dict[str, Any]]  # where, prompt, the line's other keys


def _rows_of_text(path: Path, lines: list[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if text and not text.startswith("#"):
            yield f"{path}:{number}", text, {}


def _rows_of_json(path: Path, lines: list[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        if len(line) > MAX_JSON_LINE_CHARS:
            raise PromptError(
                f"line of {len(line):,} characters", where=where, fix=f"the limit is {MAX_JSON_LINE_CHARS:,}"
            )
        try:
            record = json.loads(line, parse_constant=_refuse_constant)
        except RecursionError as error:
            raise PromptError("JSON nested too deeply", where=where, fix="flatten the metadata") from error
        except ValueError as error:
            raise PromptError(f"not JSON ({error})", where=where, fix="write one JSON object a line") from error
        if not isinstance(record, dict):
            raise PromptError(
                f"JSON {type(record).__name__}, not an object", where=where, fix='write {"prompt": "..."}'
            )
        if "prompt" not in record:
            raise PromptError('no key "prompt"', where=where, fix='write {"prompt": "..."}')
        yield where, record.pop("prompt"), record


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _collect(rows: Iterator[Row], *, where: str) -> list[Prompt]:
    """Check every row and number those without an id."""
    prompts: list[Prompt] = []
    first_use: dict[str, str] = {}
    for place, text, rest in rows:
        _check_string(text, "prompt", MAX_PROMPT_CHARS, place)
        key = rest.pop("id", f"p{len(prompts)}")
        if isinstance(key, int) and not isinstance(key, bool):
            key = str(key)
        _check_string(key, "id", MAX_ID_CHARS, place)
        if key in first_use:
            raise PromptError(
                f"id {key!r} was used before, by {first_use[key]}",
                where=place,
                fix="give each prompt its own id",
            )
        first_use[key] = place
        prompts.append(Prompt(text.strip(), rest, key))
    if not prompts:
        raise PromptError("holds no prompt", where=where, fix="write at least one")
    return prompts


def _check_string(value: Any, what: str, limit: int, where: str) -> None:
    if not isinstance(value, str):
        raise PromptError(f"{what} is {type(value).__name__}, not text", where=where, fix=f"give the {what} as text")
    if not value.strip():
        raise PromptError(f"{what} is empty", where=where, fix="fill it or remove the line")
    if len(value) > limit:
        raise PromptError(
            f"{what} of {len(value):,} characters", where=where, fix=f"shorten it: the limit is {limit:,}"
        )
    for column, char in enumerate(value, start=1):
        # Cc: control characters, NUL and tab among them. Cs: lone surrogates, which UTF-8 cannot hold
        if unicodedata.category(char) in ("Cc", "Cs"):
            raise PromptError(
                f"{what} holds control character U+{ord(char):04X} at column {column}",
                where=where,
                fix="remove it",
            )


__all__ = ["Prompt", "embedded_prompt_sets", "hold_out", "load_prompts"]
