"""A CLIP and a SigLIP of random weights, saved as real model folders."""

import warnings

import pytest

from towers import save_model


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return save_model(tmp_path_factory.mktemp("tiny-clip"))


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return save_model(tmp_path_factory.mktemp("tiny-siglip"), kind="siglip")
