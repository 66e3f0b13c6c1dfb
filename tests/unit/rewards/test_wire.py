"""The wire format: what goes in comes out bit for bit, and nothing else is taken for it."""

import base64
import json
from io import BytesIO

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pcpo.errors import RewardError
from pcpo.rewards.remote.wire import (
    FORMAT,
    MAX_PICTURES,
    WireError,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)
from pcpo.types import RewardResult
from training import pictures


def request(**changes):
    body = json.loads(encode_request(pictures(2), ["a", "b"], [{}, {"n": 1}]))
    return json.dumps({**body, **changes}).encode()


def png(size=(6, 8), kind="PNG", mode="RGB"):
    buffer = BytesIO()
    Image.new(mode, size).save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize("height, width", [(1, 1), (8, 6), (64, 64)])
def test_a_request_comes_back_bit_for_bit(height, width):
    images = pictures(5, height, width)
    prompts = ["plain", "", 'quotes " and \\', "\u00e9\u4e2d\U0001f600", "line\nbreak\x00"]
    metadata = [{}, {"text": "OPEN", "n": 3, "deep": {"list": [1.5, None, True]}}, {}, {}, {}]
    back, texts, entries = decode_request(encode_request(images, prompts, metadata))
    assert torch.equal(back, images) and back.dtype == torch.uint8
    assert texts == prompts and entries == metadata


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8), st.data())
def test_every_float32_comes_back_as_it_was(numbers, data):
    values = torch.tensor(numbers, dtype=torch.float32)
    valid = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(numbers), max_size=len(numbers))))
    back = decode_reply(encode_reply(RewardResult(values, valid, {"part": values})), len(numbers))
    assert torch.equal(back.valid, valid) and torch.equal(back.info["part"], values)
    assert torch.equal(back.values, torch.where(valid, values, 0.0))


def test_metadata_that_json_cannot_hold():
    for value in (object(), float("nan"), b"bytes"):
        with pytest.raises(RewardError, match="metadata cannot be sent"):
            encode_request(pictures(1), ["a"], [{"x": value}])


@pytest.mark.parametrize(
    "body, said",
    [
        (b"", "JSON"),
        (b"\x80\x04K\x01.", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b'{"a":' * 100_000, "JSON"),
        (b"null", "object"),
        (request(format="pcpo-reward/2"), "format"),
        (request(extra=1), "extra"),
        (request(pictures=[]), "pictures"),
        (request(pictures="x"), "pictures"),
        (request(pictures=[1, 2]), "pictures.0"),
        (request(pictures=[""] * (MAX_PICTURES + 1)), "pictures"),
        (request(prompts=["a"]), "2 pictures, 1 prompts"),
        (request(prompts=["a", None]), "prompts.1"),
        (request(prompts=["a", 7]), "prompts.1"),
        (request(metadata=[{}]), "1 metadata"),
        (request(metadata=[{}, []]), "metadata.1"),
        (request(pictures=["!!", "!!"]), "picture 0: not base64"),
        (request(pictures=["\u00e9", "x"]), "picture 0: not base64"),
        (request(pictures=["aGVsbG8=", png()]), "picture 0: not a PNG"),
        (request(pictures=[png(kind="JPEG"), png()]), "picture 0: not a PNG"),
        (request(pictures=[png(kind="BMP"), png()]), "picture 0: not a PNG"),
        (request(pictures=[png()[:40], png()]), "picture 0: not a picture"),
        (request(pictures=[png((60, 80))[:80], png()]), "picture 0: damaged"),
        (request(pictures=[png(), png((6, 9))]), "picture 1"),
        (request(pictures=[png(), png((8, 6))]), "picture 1: pictures differ in size"),
        (request(pictures=[png((12_000, 12_000), mode="1"), png()]), "12000 x 12000 pixels"),
    ],
)
def test_other_requests_are_refused(body, said):
    with pytest.raises(WireError, match=said):
        decode_request(body)


def test_many_large_pictures_are_refused_together():
    bomb = png((4000, 4000), mode="1")
    with pytest.raises(WireError, match="4000 x 4000 pixels"):
        decode_request(request(pictures=[bomb] * 100, prompts=["a"] * 100, metadata=[{}] * 100))


def reply(**changes):
    return json.dumps({"format": FORMAT, "values": [1.0, None], "info": {"part": [1, 2.5]}, **changes}).encode()


def test_a_plain_reply():
    result = decode_reply(reply(), 2)
    assert result.values.tolist() == [1, 0] and result.valid.tolist() == [True, False]
    assert result.info["part"].tolist() == [1, 2.5]


@pytest.mark.parametrize(
    "body, said",
    [
        (b"", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b"\xff\xfe", "JSON"),
        (b'"ok"', "object"),
        (reply(format="x"), "format"),
        (reply(error="x"), "error"),
        (reply(values=[1.0]), "1 values for 2"),
        (reply(values=[1.0, 2.0, 3.0]), "3 values for 2"),
        (reply(values=["1.0", "2.0"]), "values.0"),
        (reply(values=[True, 1.0]), "values.0"),
        (reply(values=[[1.0], [2.0]]), "values.0"),
        (reply(values=None), "values"),
        (b'{"format": "pcpo-reward/1", "values": [NaN, 1.0]}', "values.0"),
        (b'{"format": "pcpo-reward/1", "values": [1e999, 1.0]}', "values.0"),
        (b'{"format": "pcpo-reward/1", "values": [1e300, 1.0]}', "beyond float32"),
        (b'{"format": "pcpo-reward/1", "values": [' + b"9" * 5000 + b", 1.0]}", "number"),
        (reply(info={"part": [1.0]}), "1 info 'part' for 2"),
        (reply(info={"part": [None, 1.0]}), "info.part.0"),
        (reply(info={"": [1.0, 1.0]}), "info"),
        (reply(info=[]), "info"),
    ],
)
def test_other_replies_are_refused(body, said):
    with pytest.raises(WireError, match=said):
        decode_reply(body, 2)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_only_its_own_error_escapes(data):
    """Whole messages with bytes exchanged, cut and added; and JSON that is anything."""
    whole = data.draw(st.sampled_from([request(), reply()]))
    place = data.draw(st.integers(0, len(whole)))
    body = data.draw(
        st.one_of(
            st.builds(lambda part: whole[:place] + part + whole[place + len(part) :], st.binary(max_size=6)),
            st.just(whole[:place]),
            st.binary(max_size=60),
            st.recursive(
                st.none() | st.floats() | st.text(max_size=9),
                lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["format", "values", "info"]), inner),
                max_leaves=6,
            ).map(lambda value: json.dumps(value).encode()),
        )
    )
    for decode in (decode_request, lambda b: decode_reply(b, 2)):
        assert said(decode, body).isprintable()


def said(decode, body):
    """The message of a refusal; any other error is one of the test."""
    try:
        decode(body)
    except WireError as error:
        assert len(str(error)) < 400
        return str(error)
    return ""
