"""Parsers under spoilt and made-up input: an error of ours, or a value; nothing else comes out."""

from __future__ import annotations

import base64
import io
import json
import time

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from pcpo.data.images import load_image
from pcpo.data.prompts import load_prompts
from pcpo.errors import PCPOError
from pcpo.observe.events import read_events
from pcpo.rewards.remote.wire import FORMAT, decode_reply, decode_request
from pcpo.trainer import checkpoint, protocol
from pcpo.trainer.configfile import dump_config, load_config, parse_yaml, validate

SHORT, LONG = 2.0, 60.0  # seconds a parser
TOKENS = [
    b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\", b"\0", b"\n", b"\r", b"\t", b"\xff", b"\xef\xbb\xbf", b"NaN",
    b"-Infinity", b"1e999", b"9" * 400, b"-1", b"null", b"true", b"\\ud800", b"&a", b"*a", b"!!python/name:os.system",
    b"<<:", b"---", b"? ", b"- ", b"|", b">", b"%", b"#", b"'", b"../", b"\x89PNG", b"IDAT", b"\x7f\xff\xff\xff",
    b"\0\0\0\0", b"[" * 2000,
]  # fmt: skip
EDIT = st.tuples(st.floats(0, 1), st.integers(0, 30), st.one_of(st.sampled_from(TOKENS), st.binary(max_size=6)))
SCALAR = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from([10**400, -1, 0, "", "p0"]),
)
VALUE = st.recursive(
    SCALAR,
    lambda v: st.one_of(st.lists(v, max_size=4), st.dictionaries(st.text(max_size=6), v, max_size=4)),
    max_leaves=8,
)


def spoil(data, edits):
    """`data` with bytes taken out and put in."""
    for where, length, new in edits:
        place = int(where * len(data))
        data = data[:place] + new + data[place + length :]
    return data


def replaced(value, path, new):
    """A nested value in which the entry that `path` leads to is `new`; fractions choose among the entries."""
    if not path or not isinstance(value, (dict, list)) or not value:
        return new
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = keys[min(int(path[0] * len(keys)), len(keys) - 1)]
    copied = value.copy()
    copied[key] = replaced(value[key], path[1:], new)
    return copied


def document(value, write=json.dumps):
    """Bytes of a sound document, of one with an entry replaced, or of one with bytes changed."""
    sound = write(value).encode()
    path = st.lists(st.floats(0, 1), min_size=1, max_size=4)
    return st.one_of(
        st.lists(EDIT, min_size=1, max_size=4).map(lambda edits: spoil(sound, edits)),
        st.builds(lambda path, new: write(replaced(value, path, new)).encode(), path, VALUE),
        VALUE.map(lambda new: write(new).encode()),
    )


def to_yaml(value):
    return yaml.safe_dump(value)


def picture(kind, **options):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 7, 3), np.uint8)).save(out, kind, **options)
    return out.getvalue()


EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"  # turned by 90 degrees
PICTURES = [picture("PNG"), picture("JPEG", exif=EXIF), picture("JPEG", progressive=True), picture("WEBP")]
PNG = base64.b64encode(picture("PNG")).decode()
PROMPT = {"prompt": "a red apple", "id": "p0", "count": 3, "words": ["red"]}
REPLY = {"format": FORMAT, "values": [0.5, None], "info": {"part": [1.0, 2.0]}}
REQUEST = {"format": FORMAT, "pictures": [PNG, PNG], "prompts": ["a", "b"], "metadata": [{}, {"x": 1}]}


def read_prompts(folder, data):
    for name in ("p.jsonl", "p.txt"):
        (folder / name).write_bytes(data)
        load_prompts(folder / name)


def read_config(folder, data):
    (folder / "c.yaml").write_bytes(data)
    load_config(folder / "c.yaml")


def read_log(folder, data):
    (folder / "events.jsonl").write_bytes(data + b"\n")
    read_events(folder / "events.jsonl")


class Checkpoint:
    """A sound checkpoint whose files are changed one at a time: as they lie there, and under a manifest that agrees."""

    def __init__(self, folder):
        self.folder = folder
        self.parts = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.manifest = protocol.read_manifest(folder)

    def inputs(self):
        record = json.loads(self.parts[checkpoint.RECORD])
        manifest = json.loads(self.parts[protocol.MANIFEST])
        tensors = sorted(name for name in self.parts if name.endswith(".safetensors"))
        spoilt = st.lists(EDIT, min_size=1, max_size=3)
        return st.one_of(
            document(manifest).map(lambda data: {protocol.MANIFEST: data}),
            document(record).map(self.signed(checkpoint.RECORD)),
            *(spoilt.map(lambda e, n=name: self.signed(n)(spoil(self.parts[n], e))) for name in tensors),
        )

    def signed(self, name):
        def sign(data):
            files = self.manifest.files | {name: protocol.Entry(len(data), protocol.digest(data))}
            manifest = protocol.Manifest(self.manifest.iteration, self.manifest.config, files)
            return {name: data, protocol.MANIFEST: manifest.to_bytes()}

        return sign

    def read(self, folder, changed):
        place = folder / "000002"
        place.mkdir(exist_ok=True)
        for name, data in (self.parts | changed).items():
            (place / name).write_bytes(data)
        checkpoint.load(place)


CONFIG = validate(parse_yaml("name: x\nreward: [{name: colorfulness, weight: 0.5}, aesthetic]", "here"))
EVENT = {
    "type": "iteration",
    "iteration": 3,
    "reward_mean": 0.5,
    "steps": [0, 1],
    "clip_fraction_per_step": [0.1, 0.2],
    "seconds": {"total": 1.0},
}
PARSERS = {
    "prompt": (document(PROMPT), read_prompts),
    "config": (document(yaml.safe_load(dump_config(CONFIG)), to_yaml), read_config),
    "reply": (document(REPLY), lambda folder, data: decode_reply(data, 2)),
    "request": (document(REQUEST), lambda folder, data: decode_request(data)),
    "log": (document(EVENT), read_log),
    "image": (
        st.builds(spoil, st.sampled_from(PICTURES), st.lists(EDIT, min_size=1, max_size=4)),
        lambda folder, data: load_image(data),
    ),
}


def fuzz(inputs, read, folder, seconds):
    """Read inputs for that long; returns how many were read, and how many of them were refused."""
    count, refused, rounds, end = 0, 0, 0, time.monotonic() + seconds

    def once(data):
        nonlocal count, refused
        count += 1
        try:
            read(folder, data)
        except PCPOError as error:
            refused += 1
            assert "\n" not in error.what

    options = settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    while rounds == 0 or time.monotonic() < end:
        seed(rounds)(options(given(inputs)(once)))()
        rounds += 1
    assert refused > count / 20  # else the inputs are not hostile
    return count, refused


@pytest.fixture
def parsers(sound):
    saved = Checkpoint(sorted((sound / "checkpoints").iterdir())[-1])
    return PARSERS | {"checkpoint": (saved.inputs(), saved.read)}


@pytest.mark.parametrize("name", [*PARSERS, "checkpoint"])
def test_only_our_errors_escape(parsers, tmp_path, name):
    fuzz(*parsers[name], tmp_path, SHORT)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["checkpoint", "prompt", "config", "reply", "image"])
def test_only_our_errors_escape_in_a_minute(parsers, tmp_path, measured, name):
    count, refused = fuzz(*parsers[name], tmp_path, LONG)
    measured("fuzzing", **{name: {"seconds": LONG, "inputs": count, "refused": refused, "other_errors": 0}})
