"""What a reward client and a reward server say to each other: JSON with base64 PNG, checked on both sides.

    request   {"format": "pcpo-reward/1", "pictures": [PNG in base64], "prompts": [text], "metadata": [object]}
    reply     {"format": "pcpo-reward/1", "values": [number or null], "info": {name: [number]}}

One entry per picture; a null value abstains on that picture. A float32 written as JSON reads back as the same
float32 and PNG keeps every pixel, so a reward gives the same bits here and there (docs/adr: wire format).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from torch import Tensor

from pcpo.data.images import load_image, to_pil
from pcpo.errors import ImageError, RewardError
from pcpo.types import RewardResult

FORMAT = "pcpo-reward/1"
MAX_REPLY = 2**20  # bytes
MAX_PICTURES = 256  # in one request
MAX_PIXELS = 2**26  # of one request, all its pictures together
MAX_PICTURE_PIXELS = 2**24  # of one of them
PNG = b"\x89PNG\r\n\x1a\n"


class WireError(RewardError):
    """A request or a reply that does not follow the format."""


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    format: Literal["pcpo-reward/1"]


class _Request(_Message):
    pictures: list[str] = Field(min_length=1, max_length=MAX_PICTURES)
    prompts: list[str]
    metadata: list[dict[str, JsonValue]]


class _Reply(_Message):
    values: list[float | None]
    info: dict[Annotated[str, Field(min_length=1, max_length=100)], list[float]] = {}


_M = TypeVar("_M", bound=_Message)


def encode_png(image: Tensor) -> str:
    """A picture, uint8 [3, H, W], as PNG in base64; quick rather than small."""
    buffer = BytesIO()
    to_pil(image).save(buffer, format="PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def encode_request(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> bytes:
    """The request for B pictures, uint8 [B, 3, H, W]. Raises RewardError for metadata that JSON cannot hold."""
    message = {
        "format": FORMAT,
        "pictures": [encode_png(image) for image in images],
        "prompts": list(prompts),
        "metadata": [dict(entry) for entry in metadata],
    }
    try:
        return json.dumps(message, allow_nan=False).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise RewardError(
            f"metadata cannot be sent as JSON ({error})", where="remote reward", fix="use text, numbers, lists, objects"
        ) from error


def decode_request(body: bytes) -> tuple[Tensor, list[str], list[dict[str, Any]]]:
    """Images uint8 [B, 3, H, W], prompts and metadata of a request; WireError for anything else."""
    message = _parse(_Request, body, "request")
    size = len(message.pictures)
    if not size == len(message.prompts) == len(message.metadata):
        raise WireError(
            f"{size} pictures, {len(message.prompts)} prompts, {len(message.metadata)} metadata", where="request"
        )
    first = _decode_png(message.pictures[0], 0, min(MAX_PICTURE_PIXELS, MAX_PIXELS // size))
    height, width = first.shape[1:]
    images = first.new_empty(size, 3, height, width)
    images[0] = first
    for place, text in enumerate(message.pictures[1:], start=1):
        image = _decode_png(text, place, height * width)
        if image.shape != first.shape:
            raise WireError("pictures differ in size", where=f"picture {place}")
        images[place] = image
    return images, message.prompts, message.metadata


def encode_reply(result: RewardResult) -> bytes:
    """The reply for checked values (`pcpo.rewards.base.evaluate`)."""
    scored = zip(result.values.tolist(), result.valid.tolist(), strict=True)
    message = {
        "format": FORMAT,
        "values": [value if valid else None for value, valid in scored],
        "info": {name: part.tolist() for name, part in result.info.items()},
    }
    return json.dumps(message, allow_nan=False).encode("ascii")


def decode_reply(body: bytes, size: int) -> RewardResult:
    """The values of a reply for `size` pictures; WireError unless all of it is as it should be."""
    message = _parse(_Reply, body, "reply")
    lengths = {"values": len(message.values), **{f"info {name!r}": len(part) for name, part in message.info.items()}}
    for name, length in lengths.items():
        if length != size:
            raise WireError(f"{length} {name} for {size} pictures", where="reply")
    valid = torch.tensor([value is not None for value in message.values])
    values = _float32([value or 0.0 for value in message.values], "values")
    return RewardResult(values, valid, {name: _float32(part, name) for name, part in message.info.items()})


def _parse(kind: type[_M], body: bytes, where: str) -> _M:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:100]
        raise WireError(f"{place}: {first['msg']}" if place else first["msg"], where=where) from None


def _decode_png(text: str, place: int, max_pixels: int) -> Tensor:
    where = f"picture {place}"
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise WireError("not base64", where=where) from None
    if not data.startswith(PNG):
        raise WireError("not a PNG", where=where)
    try:
        return load_image(data, max_pixels=max_pixels)
    except ImageError as error:
        raise WireError(error.what, where=where) from error


def _float32(values: list[float], name: str) -> Tensor:
    numbers = torch.tensor(values, dtype=torch.float64).float()
    if not numbers.isfinite().all():
        raise WireError(f"{name}: a number beyond float32", where="reply")
    return numbers


__all__ = [
    "FORMAT",
    "MAX_PICTURES",
    "MAX_PIXELS",
    "MAX_REPLY",
    "WireError",
    "decode_reply",
    "decode_request",
    "encode_png",
    "encode_reply",
    "encode_request",
]
