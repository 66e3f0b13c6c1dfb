"""The model hub: one short question before a download, and what to say when it is out of reach."""

from __future__ import annotations

import functools
from typing import TypeVar

from pcpo.errors import PCPOError, one_line

Kind = TypeVar("Kind", bound=PCPOError)


@functools.cache
def ask(name: str, *files: str) -> None:
    """Ask the hub for the first of a model's files, where none of them is cached and the hub is not switched off.

    A download would be tried again for most of a minute without a connection. A model without that file passes: whoever
    needs it says so. Raises the hub client's errors.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    if constants.HF_HUB_OFFLINE or any(isinstance(try_to_load_from_cache(name, file), str) for file in files):
        return
    try:
        get_hf_file_metadata(hf_hub_url(name, files[0]), timeout=10)
    except EntryNotFoundError:
        return


def unreachable(kind: type[Kind], where: str, error: Exception) -> Kind:
    """The error of `kind` to raise for what the hub's client raised."""
    return kind(
        f"neither a local folder nor reachable on the hub ({one_line(error)})",
        where=where,
        fix="check the name, your connection and access, or download the model and pass its folder",
    )
