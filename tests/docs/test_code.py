"""The code on the pages is run, or at least read, as it is printed."""

from __future__ import annotations

import re
import shlex
import shutil

import pytest
import typer
import yaml
from PIL import Image

from pages import DOCS, PAGES, blocks, name, prose, rows, write_files
from pcpo.cli.main import app
from pcpo.errors import ModelError
from pcpo.observe.events import read_events
from pcpo.observe.report import write_report
from pcpo.trainer.configfile import load_config, preset_names

VERBS = typer.main.get_command(app).commands
HOW_TO = DOCS / "how-to"


def commands(page):
    """The pcpo commands of a page's shell blocks, split."""
    lines = [line for text in blocks(page, "bash") for line in text.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("pcpo ")]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_compiles(page):
    for text in blocks(page, "python"):
        compile(text, name(page), "exec")


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name)
def test_commands_parse_and_their_settings_are_valid(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_files(page, tmp_path)
    for verb, *arguments in commands(page):
        command = VERBS[verb]
        while hasattr(command, "commands") and arguments:
            command = command.commands[arguments.pop(0)]
        given = command.make_context(verb, list(arguments)).params
        source = given.get("source")
        if verb in ("train", "validate") and not source.startswith("runs/"):
            load_config(source, given["overrides"] or [])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_presets_that_are_named_exist(page):
    named = re.findall(r"`((?:pcpo|ddpo|flow_grpo|dance_grpo|tempflow_grpo|grpo_guard)_?\w*)`", prose(page))
    package = {"pcpo"}
    assert set(named) - package <= set(preset_names())


def test_tutorial_runs(folders, tmp_path, monkeypatch, capsys):
    """Each step as printed, but with a tiny pipeline in the place of the embedded one, and shorter."""
    page = DOCS / "tutorial.md"
    monkeypatch.chdir(tmp_path)
    write_files(page, tmp_path)
    shutil.copytree(folders["sd"], tmp_path / "src" / "pcpo" / "assets" / "emoji-sd")
    VERBS["rewards"].commands["check"].main(["my_reward.py:warmth"], standalone_mode=False)
    assert "nothing found" in capsys.readouterr().out
    small = ["model.path=src/pcpo/assets/emoji-sd", "sampler.steps=3", "train.iterations=2", "batch.group_size=2"]
    small += ["evaluation.every=2", "evaluation.num_prompts=1", "evaluation.credit_probe=2", "run.device=cpu"]
    runs = [arguments for verb, *arguments in commands(page) if verb == "train"]
    assert [arguments[2] for arguments in runs] == ["runs/mine", "runs/mine-native"]
    for arguments in runs:
        VERBS["train"].main([*arguments, "-q", *(f"--set={s}" for s in small)], standalone_mode=False)
    capsys.readouterr()

    report = next(arguments for verb, *arguments in commands(page) if verb == "report")
    VERBS["report"].main(report, standalone_mode=False)
    compared = (tmp_path / "compared.html").read_text("utf-8")
    assert ">mine<" in compared and ">native<" in compared

    sample = next(arguments for verb, *arguments in commands(page) if verb == "sample")
    VERBS["sample"].main([*sample, "--steps", "2", "--count", "1"], standalone_mode=False)
    assert (tmp_path / "samples" / "sheet.png").is_file()

    (use,) = (text for text in blocks(page, "python") if not text.startswith("# my_reward.py"))
    names = {}
    exec(compile(use.replace("num_inference_steps=20", "num_inference_steps=3"), str(page), "exec"), names)
    assert names["pipe"].get_active_adapters()
    with Image.open("apple.png") as picture:
        assert picture.size == (16, 16)


def test_add_a_method_runs():
    names = {}
    for text in blocks(HOW_TO / "add-a-method.md", "python"):
        exec(compile(text, "add-a-method.md", "exec"), names)
    # the schedule's promise, on a schedule that breaks it
    assert names["native"](names["stats"]).sum() != (names["native"](names["stats"]) ** 0.5).sum()


def test_own_model_runs(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folders["sd"], tmp_path / "models" / "my-sd15")
    (text,) = blocks(HOW_TO / "own-model.md", "python")
    exec(compile(text, "own-model.md", "exec"), {})
    assert capsys.readouterr().out == "diffusion 16 (4, 8, 8)\n"
    (text,) = blocks(HOW_TO / "own-model.md", "yaml")
    (tmp_path / "lora.yaml").write_text(text)
    assert load_config("lora.yaml").model.lora.targets == yaml.safe_load(text)["model"]["lora"]["targets"]


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda f: shutil.rmtree(f), "no such folder"),
        (lambda f: (f / "model_index.json").unlink(), "no model_index.json"),
        (lambda f: shutil.rmtree(f / "vae"), "lacks the component"),
        (lambda f: next((f / "unet").glob("*.safetensors")).unlink(), "no safetensors"),
        (lambda f: change(f / "model_index.json", "StableDiffusionPipeline", "DiTPipeline"), "no adapter"),
        (lambda f: change(f / "scheduler" / "scheduler_config.json", "epsilon", "sample"), "prediction_type"),
    ],
)
def test_own_model_refuses_what_the_page_says(folders, tmp_path, damage, said):
    from pcpo.models.loading import load_adapter

    folder = tmp_path / "model"
    shutil.copytree(folders["sd"], folder)
    damage(folder)
    with pytest.raises(ModelError, match=said):
        load_adapter(str(folder))


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_run_folder_and_report_are_as_described(trainer, tmp_path):
    job = trainer(
        "sd", train={"iterations": 1, "select": "first", "fraction": 0.5}, evaluation={"credit_probe": 2, "save": True}
    )
    job.train()
    write_report(job.folder)
    listed = [
        re.sub(r"[NM]{2,}", "*", cells[0].strip("`"))
        for cells in rows(DOCS / "reference" / "run-folder.md", "# Run folder")
    ]
    written = {path for path in job.folder.rglob("*") if path.is_file()}
    described = set()
    for pattern in listed:
        if "or" not in pattern.split():  # the full fine-tuning's folder
            found = set(job.folder.glob(pattern))
            assert found, pattern
            described |= found
    assert written <= described
    log = read_events(job.folder / "events.jsonl")
    assert log.gradient_share[0].iteration == 0 and [row.iteration for row in log.iterations] == [1]
    assert log.credit.steps == [0, 1] and log.credit.num_steps == 4

    html = (job.folder / "report.html").read_text("utf-8")
    page = (HOW_TO / "read-the-report.md").read_text("utf-8")
    assert all(f"<h2>{title}</h2>" in html for title in re.findall(r"^### (.+)$", page, flags=re.MULTILINE))
    from pcpo.observe.sections import MULTIPLES

    charts = [cells[0] for cells in rows(HOW_TO / "read-the-report.md", "### Training health")]
    assert charts == [title for title, *_ in MULTIPLES]
