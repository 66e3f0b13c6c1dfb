"""Tiny pipelines on disk, made once, and a factory of trainers on them."""

from __future__ import annotations

import copy
import os
from functools import partial

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers.utils import logging as transformers_logging

import tiny
import training

pytest_plugins = ["measured"]

# Some tests compare bits: one thread reduces in one order.
torch.set_num_threads(1)
diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()

MAKERS = {
    "sd": tiny.stable_diffusion,
    "sd_v": lambda: tiny.stable_diffusion("v_prediction"),
    "sd3": tiny.stable_diffusion_3,
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Family -> pipeline folder: sd predicts eps, sd_v the velocity of diffusion, sd3 is a flow."""
    parent = tmp_path_factory.mktemp("pipelines")
    for name, make in MAKERS.items():
        make().save_pretrained(parent / name)
    return {name: parent / name for name in MAKERS}


@pytest.fixture(scope="session")
def pipelines():
    """Folder and dtypes -> the pipeline as it was loaded once, to be copied: reading takes most of a tiny run."""
    return {}


@pytest.fixture
def trainer(folders, pipelines, tmp_path, monkeypatch):
    """`trainer(family, ..., train={...})`: a PCPOTrainer on a tiny pipeline; the run folder is tmp_path / output."""
    from pcpo.models import loading

    load = loading.load_pipeline

    def load_once(path, dtype, others):
        key = path, dtype, tuple(others.items())
        if key not in pipelines:
            pipelines[key] = load(path, dtype, others)
        return copy.deepcopy(pipelines[key])

    def make(family="sd", *, output="run", reward=training.reddish, resume=False, **changes):
        from pcpo.trainer.loop import PCPOTrainer

        settings = training.settings(family, folders[family], tmp_path / output, **changes)
        with monkeypatch.context() as patch:
            patch.setattr(loading, "load_pipeline", load_once)
            return PCPOTrainer(config=settings, reward=reward, resume=resume, quiet=True)

    return make


@pytest.fixture
def double(monkeypatch):
    """Everything that the library keeps in float32 is float64 instead; a trainer is to be passed through it."""
    from pcpo.samplers.noise import noise_batch
    from pcpo.trainer import collect

    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(collect, "noise_batch", partial(noise_batch, dtype=torch.float64))

    def cast(trainer):
        for part in trainer.adapter.pipe.components.values():
            if isinstance(part, nn.Module):
                part.double()
        if hasattr(trainer.adapter, "alphas_cumprod"):
            trainer.adapter.alphas_cumprod = trainer.adapter.alphas_cumprod.double()
        trainer.adapter.embeddings.clear()
        return trainer

    return cast
