"""examples/pcpo_single_file.py is the algorithm that the library runs: same weights and pictures, bit for bit."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pcpo.data.images import contact_sheet, load_image
from pcpo.models.lora import LORA_FILE
from pcpo.trainer.configfile import load_config
from pcpo.trainer.loop import PCPOTrainer

FILE = Path(__file__).parents[2] / "examples/pcpo_single_file.py"
# five prompts, two an iteration: batches span epochs, and an epoch ends within one
PROMPTS = ["a red fox", "a blue whale", "# not a prompt", "a green tree", "a yellow sun", "", "a grey stone"]
ITERATIONS, UPDATES = 10, 2
SEED = 3


@pytest.fixture(scope="module")
def single_file():
    spec = importlib.util.spec_from_file_location("pcpo_single_file", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_its_defaults_are_the_demo_preset(single_file):
    settings, demo = single_file.Settings(), load_config("demo")
    assert settings.model == demo.model.path and settings.steps == demo.sampler.steps
    assert settings.guidance_scale == demo.sampler.guidance_scale
    assert (settings.prompts_per_iteration, settings.group_size) == (demo.batch.prompts, demo.batch.group_size)
    assert (settings.iterations, settings.updates) == (demo.train.iterations, demo.train.updates)
    assert settings.clip_range == demo.objective.clip_range and settings.lora_rank == demo.model.lora.rank
    assert (settings.learning_rate, settings.max_grad_norm) == (demo.optim.learning_rate, demo.optim.max_grad_norm)
    evaluation = (settings.evaluation_prompts, settings.evaluation_pictures)
    assert evaluation == (demo.evaluation.num_prompts, demo.evaluation.per_prompt)
    assert (demo.credit.schedule, demo.credit.apply, demo.objective.name) == ("uniform", "matching", "matching")


@pytest.fixture(scope="module")
def runs(single_file, folders, tmp_path_factory):
    """The output folders of the file and of the library, with the same settings."""
    folder = tmp_path_factory.mktemp("single")
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS), "utf-8")
    single_file.train(
        single_file.Settings(
            model=str(folders["sd"]),
            prompts=str(prompts),
            output=str(folder / "single"),
            seed=SEED,
            steps=4,
            prompts_per_iteration=2,
            group_size=3,
            iterations=ITERATIONS,
            updates=UPDATES,
            clip_range=1e-4,
            learning_rate=1e-3,
            max_grad_norm=0.15,  # low enough to act in most updates
            lora_rank=4,
            evaluation_prompts=3,
            evaluation_pictures=2,
        )
    )
    library = {
        "model": {"path": str(folders["sd"]), "lora": {"rank": 4, "fold": False}},
        "prompts": str(prompts),
        "reward": "colorfulness",
        "sampler": {"name": "ddim", "steps": 4, "eta": 1.0, "guidance_scale": 4.0},
        "batch": {"prompts": 2, "group_size": 3},
        "train": {"iterations": ITERATIONS, "updates": UPDATES},
        "optim": {"learning_rate": 1e-3, "max_grad_norm": 0.15},
        "evaluation": {"every": ITERATIONS, "num_prompts": 3, "per_prompt": 2, "credit_probe": 2},
        "run": {"seed": SEED, "output": str(folder / "library")},
    }
    PCPOTrainer(config=library, quiet=True).train()
    return folder / "single", folder / "library"


def test_weights_are_the_library_s_bit_for_bit(runs):
    single, library = (
        load_file(run / place) for run, place in zip(runs, (LORA_FILE, f"lora/{LORA_FILE}"), strict=True)
    )
    assert single.keys() == library.keys()
    assert all(torch.equal(single[name], library[name]) for name in single)
    moved = [name for name in single if "lora_B" in name or "lora.up" in name]
    assert moved and all(single[name].abs().max() > 1e-4 for name in moved), "20 updates left B where it began: at 0"


@pytest.mark.parametrize(("name", "iteration"), [("before", 0), ("after", ITERATIONS)])
def test_evaluation_pictures_are_the_library_s(runs, name, iteration):
    single, library = runs
    tiles = torch.stack([load_image(library / f"images/{iteration:06d}/{n:02d}.png") for n in range(6)])
    assert torch.equal(load_image(single / f"{name}.png"), contact_sheet(tiles, columns=2, pad=0))


def test_training_shows_in_the_pictures(runs):
    single, _ = runs
    assert not torch.equal(load_image(single / "before.png"), load_image(single / "after.png"))


def test_the_command_line_reaches_the_settings(single_file, monkeypatch):
    seen = []
    monkeypatch.setattr(single_file, "train", seen.append)
    monkeypatch.setattr(
        sys, "argv", ["pcpo_single_file.py", "--learning-rate", "2e-4", "--model", "here", "--steps", "7"]
    )
    single_file.main()
    assert seen == [single_file.Settings(learning_rate=2e-4, model="here", steps=7)]


def test_it_stands_alone_and_can_be_read_in_one_go():
    source = FILE.read_text("utf-8")
    assert len(source.splitlines()) <= 350
    imported = {
        module
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for module in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module])
    }
    assert not any(module.split(".")[0] == "pcpo" for module in imported)
