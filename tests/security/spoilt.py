"""Hostile contents: what a JSON, YAML, text, safetensors or picture file should not hold, and what is no file at all.

Each table maps a name to the contents, or to a function of the path that makes something there.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

GIB = 1 << 30
Made = bytes | Callable[[Path], object]


class _Runs:
    """Unpickling it would make a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


def pickled(path: Path) -> None:
    """A pickle that would leave a folder PATH.ran."""
    path.write_bytes(pickle.dumps(_Runs(path.with_name(path.name + ".ran"))))


def torch_archive(path: Path) -> None:
    """The zip that torch.save writes, with the same pickle in it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(_Runs(path.with_name(path.name + ".ran"))))
        archive.writestr("archive/version", "3\n")


def sparse(path: Path) -> None:
    """1 GiB of zeros that take no room on the disk."""
    with path.open("wb") as file:
        file.truncate(GIB)


# In the place of a file.
NOT_FILES: dict[str, Made] = {
    "folder": lambda path: path.mkdir(),
    "fifo": lambda path: os.mkfifo(path),
    "link-to-device": lambda path: path.symlink_to("/dev/zero"),
    "link-to-itself": lambda path: path.symlink_to(path),
    "gibibyte": sparse,
}

DEEP = 100_000
# For what is read as JSON.
JSONS: dict[str, Made] = {
    "empty": b"",
    "nul": b"\0" * 64,
    "pickle": pickled,
    "utf16": '{"prompt": "red", "type": "x"}'.encode("utf-16"),
    "not-utf8": b'{"prompt": "\xff\xfe", "type": "x"}',
    "deep-list": b"[" * DEEP,
    "deep-object": b'{"a":' * DEEP,
    "closed-deep-list": b"[" * DEEP + b"]" * DEEP,
    "nan": b'{"type": NaN, "prompt": NaN, "_class_name": NaN, "format": NaN}',
    "infinity": b'{"type": -Infinity, "prompt": Infinity, "_class_name": Infinity}',
    "huge-integer": b'{"type": ' + b"9" * 50_000 + b"}",
    "overflow": b'{"type": 1e999, "prompt": 1e999, "_class_name": 1e999}',
    "list": b"[1, 2, 3]",
    "null": b"null",
    "text": b'"text"',
    "number": b"17",
    "truncated": b'{"type": "iteration", "prompt": "re',
    "surrogate": b'{"type": "\\ud800", "prompt": "\\ud800", "_class_name": "\\ud800"}',
    "wrong-types": b'{"type": [], "prompt": {}, "_class_name": {"a": 1}, "format": "x"}',
    "duplicates": b'{"type": 1, "type": 2, "prompt": 1, "prompt": 2, "_class_name": 1, "_class_name": 2}',
    "gzip": b"\x1f\x8b\x08\x00" + b"\0" * 60,
}


def altered(record: dict[str, Any]) -> dict[str, Made]:
    """The JSON of a sound record with a value left out or replaced: its own, and those of the first entry of its lists.

    The replacements take turns, two for each value of its own.
    """
    turns = itertools.cycle(
        {"null": None, "text": "x", "list": [[]], "huge": 1e300, "minus": -1, "large": 10**30}.items()
    )
    made: dict[str, Made] = {}
    for key, value in record.items():
        made[f"no-{key}"] = json.dumps({k: v for k, v in record.items() if k != key}).encode()
        for name, new in itertools.islice(turns, 2):
            made[f"{key}-is-{name}"] = json.dumps({**record, key: new}).encode()
        inner = value[0] if isinstance(value, list) and value else None
        for entry, (name, new) in zip(inner if isinstance(inner, dict) else (), turns, strict=False):
            lines = [{**inner, entry: new}, *value[1:]]
            made[f"{key}-{entry}-is-{name}"] = json.dumps({**record, key: lines}).encode()
    return made


_LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
YAMLS: dict[str, Made] = {
    "bomb": _LAUGHS.encode(),
    "recursive-alias": b"a: &a [*a]\n",
    "merge-key": b"base: &b {name: x}\nmodel:\n  <<: *b\n",
    "duplicate-key": b"name: a\nname: b\n",
    "nested-duplicate-key": b"model: {path: a, path: b}\n",
    "python-object": b"name: !!python/object/apply:os.system ['touch ran']\n",
    "python-name": b"name: !!python/name:os.system\n",
    "python-tuple": b"prompts: !!python/tuple [a, b]\n",
    "unknown-tag": b"name: !x y\n",
    "binary-tag": b"name: !!binary aGVsbG8=\n",
    "timestamp": b"name: 2001-12-14t21:59:43.10-05:00\n",
    "bad-timestamp": b"name: 2001-99-99\n",
    "set": b"prompts: !!set {a, b}\n",
    "omap": b"prompts: !!omap [a: 1]\n",
    "deep-list": b"[" * DEEP,
    "deep-mapping": b"".join(b" " * n + b"a:\n" for n in range(1200)),
    "nan": b"train: {iterations: .nan}\n",
    "infinity": b"optim: {learning_rate: .inf}\n",
    "huge-integer": b"train: {iterations: " + b"9" * 50_000 + b"}\n",
    "huge-exponent": b"train: {iterations: 1e999999999}\n",
    "sexagesimal": b"train: {iterations: " + b"1:" * 20_000 + b"1}\n",
    "two-documents": b"name: a\n---\nname: b\n",
    "list": b"[a, b]\n",
    "number-key": b"1: a\n",
    "mapping-key": b"? {a: b}\n: c\n",
    "list-key": b"? [a, b]\n: c\n",
    "control": b"name: \x07\n",
    "nul": b"name: a\0b\n",
    "utf16": "name: a\nunknown: b\n".encode("utf-16"),
    "not-utf8": b"name: \xff\n",
    "unclosed": b"name: 'a\n",
    "long-line": b"unknown: " + b"x" * 900_000,
    "path-as-name": b"name: ../../outside/x\n",
}


def _header(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _f32(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


SAFETENSORS: dict[str, Made] = {
    "empty": b"",
    "pickle": pickled,
    "torch-archive": torch_archive,
    "seven-bytes": b"\0" * 7,
    "nul": b"\0" * 64,
    "huge-header-length": _header(b"{}", length=(1 << 64) - 1),
    "signed-header-length": _header(b"{}", length=1 << 63),
    "header-over-the-file": _header(b"{}", length=1 << 20),
    "header-of-100-megabytes": _header(b" " * 100_000_001),
    "deep-header": _header(b"[" * DEEP),
    "deep-metadata": _header(b'{"__metadata__": ' + b'{"a":' * DEEP),
    "header-not-utf8": _header(b'{"\xff": {}}'),
    "header-is-a-list": _header([1]),
    "metadata-of-numbers": _header({"__metadata__": {"a": 1}}),
    "overlap": _header({"a": _f32([4], 0, 16), "b": _f32([4], 8, 24)}, b"\0" * 24),
    "same-place": _header({"a": _f32([4], 0, 16), "b": _f32([4], 0, 16)}, b"\0" * 16),
    "hole": _header({"a": _f32([4], 0, 16), "b": _f32([4], 32, 48)}, b"\0" * 48),
    "out-of-range": _header({"a": _f32([4], 0, 16)}, b"\0" * 8),
    "far-out-of-range": _header({"a": _f32([1 << 40], 0, 1 << 42)}, b"\0" * 8),
    "offset-overflow": _header({"a": _f32([4], (1 << 64) - 16, 1 << 64)}, b"\0" * 16),
    "reversed": _header({"a": _f32([4], 16, 0)}, b"\0" * 16),
    "negative": _header({"a": _f32([4], -16, 0)}, b"\0" * 16),
    "negative-shape": _header({"a": _f32([-4], 0, 16)}, b"\0" * 16),
    "shape-overflow": _header({"a": _f32([1 << 33, 1 << 33], 0, 16)}, b"\0" * 16),
    "shape-unlike-size": _header({"a": _f32([5], 0, 16)}, b"\0" * 16),
    "unknown-dtype": _header({"a": _f32([4], 0, 16, "OBJECT")}, b"\0" * 16),
    "trailing": _header({"a": _f32([4], 0, 16)}, b"\0" * 4096),
    "duplicate-name": _header(
        b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},'
        b' "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}',
        b"\0" * 16,
    ),
    "no-tensor": _header({}),
    "other-tensor": _header({"a": _f32([4], 0, 16)}, b"\0" * 16),
    "traversing-name": _header({"../../outside/a": _f32([4], 0, 16)}, b"\0" * 16),
    "many-dimensions": _header({"a": _f32([1] * 4096, 0, 4)}, b"\0" * 4),
}


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 1, colour: int = 0, pixels: bytes | None = None) -> bytes:
    """A PNG, black unless `pixels` gives its compressed data; `chunks` stand before it."""
    if pixels is None:
        row = b"\0" * (1 + (width * depth * (3 if colour == 2 else 1) + 7) // 8)
        packer = zlib.compressobj(9)
        pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + body


def bomb() -> bytes:
    """144 megapixels in about 17 kB."""
    return png(12_000, 12_000)


def _pillow(kind: str, **options: Any) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)).save(out, kind, **options)
    return out.getvalue()


def pictures() -> dict[str, Made]:
    """Hostile pictures; made on demand, for the bomb takes a moment."""
    bomb_of_text = zlib.compress(b"x" * (200 << 20), 1)
    return {
        "bomb": bomb(),
        "widest": png(1, 1, pixels=b"").replace(
            struct.pack(">II", 1, 1), struct.pack(">II", 0x7FFFFFFF, 0x7FFFFFFF), 1
        ),
        "no-width": png(1, 1).replace(struct.pack(">II", 1, 1), struct.pack(">II", 0, 1), 1),
        "text-bomb": png(8, 8, png_chunk(b"zTXt", b"a\0\0" + bomb_of_text)),
        "profile-bomb": png(8, 8, png_chunk(b"iCCP", b"a\0\0" + bomb_of_text)),
        "text-chunks": png(8, 8, *[png_chunk(b"tEXt", b"k\0" + b"v" * 1000)] * 20_000),
        "pixel-bomb": png(8, 8, pixels=zlib.compress(b"\0" * (100 << 20), 1)),
        "few-pixels": png(512, 512, pixels=zlib.compress(b"\0" * 10)),
        "broken-pixels": png(8, 8, pixels=b"not deflate"),
        "truncated": _pillow("PNG")[:60],
        "truncated-jpeg": _pillow("JPEG")[:300],
        "truncated-webp": _pillow("WEBP")[:40],
        "gif": _pillow("GIF"),
        "bmp": _pillow("BMP"),
        "tiff": _pillow("TIFF"),
        "icns": b"icns" + b"\0" * 60,
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(ran) (w) file\n",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "html": b"<!doctype html><script>1</script>",
        "pickle": pickled,
        "empty": b"",
        "nul": b"\0" * 4096,
        "jpeg-of-64k": b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01\xff\xd9",
        "wrong-checksum": _pillow("PNG")[:-20] + b"\0" * 20,
    }


def put(path: Path, made: Made) -> None:
    """Put hostile contents in the place of a file or a folder."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    if callable(made):
        made(path)
    else:
        path.write_bytes(made)
