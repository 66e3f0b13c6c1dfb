"""Names that lead out of a folder: nothing outside is read or written, as an audit hook in the process sees it."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path

import pytest

from pages import ROOT
from pcpo.study.plan import Study
from pcpo.trainer import protocol
from pcpo.trainer.config import Config
from security.places import CONFIG, copy
from servers import serving
from training import constant

# {out} is a path of the folder beside the one that the command works in.
NAMES = (
    "../outside/secret.png",
    "../../{place}/outside/secret.png",
    "images/../../outside/secret.png",
    "{out}/secret.png",
    "file://{out}/secret.png",
    "images/link/secret.png",
    "images/link.png",
    "images/000000/../../../outside/secret.png",
    "./../outside/secret.png",
    "..//outside//secret.png",
    "images/000000/00.png/../../../../outside/secret.png",
    "../outside/secret.png\0.png",
    "~/../{out}/secret.png",
    "%2e%2e/outside/secret.png",
    "..\\outside\\secret.png",
)
PREFIXES = tuple(
    {
        str(Path(place).resolve())
        for place in (sys.prefix, sys.base_prefix, ROOT, "/usr", "/etc", "/proc", "/sys", "/dev")
    }
)


@pytest.fixture
def place(sound, folders, tmp_path):
    """A copy of the run with links that lead out of it, and the folder that nobody may look into."""
    outside = tmp_path / "outside"
    outside.mkdir()
    picture = sound / "images/000000/00.png"
    for name in ("secret.png", "secret.safetensors", "secret.txt", "secret.yaml", "secret.json"):
        shutil.copy(picture, outside / name)
    shutil.copytree(folders["sd"], outside / "pipeline")
    run = copy(sound, tmp_path / "run")
    (run / "images/link").symlink_to(outside)
    (run / "images/link.png").symlink_to(outside / "secret.png")
    return run


def inside_only(outcome, tmp_path, allowed=()):
    """No file outside of the places that belong to the job was touched."""
    outside = [f"{how} {path}" for how, path in outcome.touched if path.startswith(str(tmp_path / "outside"))]
    wrote = [
        p for how, p in outcome.touched if how == "write" and not p.startswith((str(tmp_path), "/dev/null", *allowed))
    ]
    read = [p for how, p in outcome.touched if how == "read" and not p.startswith((str(tmp_path), *PREFIXES, *allowed))]
    assert not outside + wrote + read, outcome
    return 1


def filled(name, tmp_path):
    return name.replace("{out}", str(tmp_path / "outside")).replace("{place}", tmp_path.name)


@pytest.mark.parametrize("verb", ["report", "export"])
def test_pictures_that_a_log_names(worker, sound, folders, place, tmp_path, measured, verb):
    log = (place / "events.jsonl").read_text("utf-8").splitlines()
    count, whole = 0, [str(sound), str(folders["sd"])]
    for number, name in enumerate(NAMES):
        lines = [json.loads(line) for line in log]
        for line in lines:
            if line["type"] == "evaluation":
                line["pictures"] = [filled(name, tmp_path)] * 2
                line["sheet"] = filled(name, tmp_path)
        (place / "events.jsonl").unlink()
        (place / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        words = {"report": ["report", place], "export": ["export", place, "-o", tmp_path / f"exported{number}"]}[verb]
        outcome = worker.run("command", *words)
        assert outcome.kind == "ok", outcome
        count += inside_only(outcome, tmp_path, whole)
    assert not list(tmp_path.glob("exported*/samples.png"))
    measured("traversal", **{f"picture_names_{verb}": count})


def test_names_in_settings_are_no_paths(measured):
    for name in NAMES + ("..", ".", "a/b", "", "a\nb", "/"):
        with pytest.raises(ValueError):
            Config.model_validate({"name": name})
        parts = {"name": "x", "models": {"m": {}}, "rewards": {"colorfulness": {}}, "arms": {"a": {}}, "seeds": [0]}
        for axis in ("models", "rewards", "arms"):
            with pytest.raises(ValueError):
                Study.model_validate({**parts, axis: {name: {}}})
    measured("traversal", run_names=len(NAMES) + 6, cell_names=3 * (len(NAMES) + 6))


def _index(**changes):
    def change(folder):
        path = folder / "model_index.json"
        data = json.loads(path.read_text("utf-8")) | changes
        path.unlink()
        path.write_text(json.dumps(data), "utf-8")

    return change


def _weight_map(name):
    def change(folder):
        (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
        data = {"metadata": {"total_size": 1}, "weight_map": {"conv_in.weight": name}}
        (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(data), "utf-8")

    return change


@pytest.mark.parametrize(
    "change",
    [
        _index(**{"../outside/pipeline/unet": ["diffusers", "UNet2DConditionModel"]}),
        _index(**{"/": ["diffusers", "UNet2DConditionModel"]}),
        _index(unet=["antigravity", "UNet2DConditionModel"]),
        _index(unet=["../outside/module", "UNet2DConditionModel"]),
        _index(unet=["os", "system"]),
        _index(_class_name="../outside/pipeline"),
        _index(_class_name=["../outside/pipeline", "x"]),
        _weight_map("../../outside/secret.safetensors"),
        _weight_map("/dev/zero"),
        _weight_map("../unet/diffusion_pytorch_model.bin"),
        _weight_map("pytorch_model.bin"),
        _weight_map(17),
    ],
)
def test_model_folders(worker, folders, place, tmp_path, measured, change):
    folder = copy(folders["sd"], tmp_path / "pipeline")
    change(folder)
    outcome = worker.run("model", folder)
    assert outcome.typed, outcome
    inside_only(outcome, tmp_path)
    measured("traversal", model_folders=12)


@pytest.mark.parametrize("name", NAMES)
def test_metadata_of_pictures(worker, tmp_path, place, name):
    folder = tmp_path / "set"
    shutil.copytree(place / "images", folder / "images", symlinks=True)
    line = {"file_name": filled(name, tmp_path), "prompt": "red"}
    (folder / "metadata.jsonl").write_text(json.dumps(line) + "\n", "utf-8")
    outcome = worker.run("pictures", folder)
    assert outcome.typed, outcome
    inside_only(outcome, tmp_path)


@pytest.mark.parametrize("name", ["../outside/secret", "{out}/secret", "a/../../outside/secret"])
def test_iterations_of_a_run(worker, sound, folders, tmp_path, place, name):
    outcome = worker.run("command", "sample", f"{place}@{filled(name, tmp_path)}", "-p", "red", "-o", tmp_path / "x")
    assert outcome.typed, outcome
    inside_only(outcome, tmp_path)


def test_checkpoint_manifests(worker, sound, place, tmp_path, measured):
    newest = sorted((place / "checkpoints").iterdir())[-1]
    for name in NAMES:
        manifest = protocol.read_manifest(newest)
        files = manifest.files | {filled(name, tmp_path): next(iter(manifest.files.values()))}
        path = newest / protocol.MANIFEST
        data = protocol.Manifest(manifest.iteration, manifest.config, files).to_bytes()
        kept = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
        outcome = worker.run("checkpoint", newest)
        assert outcome.typed, outcome
        inside_only(outcome, tmp_path)
        path.write_bytes(kept)
    measured("traversal", checkpoint_manifests=len(NAMES), metadata=len(NAMES))


def test_prompts_and_ids_name_no_file(worker, folders, tmp_path, measured):
    (tmp_path / "outside").mkdir()
    names = [name for name in NAMES if "\0" not in name]
    lines = [{"prompt": filled(name, tmp_path), "id": filled(name, tmp_path)} for name in names]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    text = CONFIG.format(model=folders["sd"], output=tmp_path / "run").replace(
        'prompts: [red, "a blue boat"]', f"prompts: {tmp_path}/p.jsonl"
    )
    (tmp_path / "c.yaml").write_text(text.replace("iterations: 2", "iterations: 1"), "utf-8")
    trained = worker.run("command", "train", tmp_path / "c.yaml", "-q", mib=8192, seconds=120)
    sampled = worker.run(
        "command",
        "sample",
        folders["sd"],
        "--prompts",
        tmp_path / "p.jsonl",
        "-n",
        1,
        "--steps",
        1,
        "-o",
        tmp_path / "s",
    )
    for outcome in (trained, sampled):
        assert outcome.kind == "ok", outcome
        inside_only(outcome, tmp_path, [str(folders["sd"])])
    measured("traversal", prompts_and_ids=2 * len(names))


ROUTES = (
    "/../../etc/passwd",
    "/..%2f..%2fetc/passwd",
    "/info/../../etc/passwd",
    "//etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/static/../../../etc/passwd",
    "/score/..;/..;/etc/passwd",
    "/\\..\\..\\etc\\passwd",
    "http://x/etc/passwd",
    "/info\0/x",
    "/health/",
    "/.git/config",
    "/%00",
    "/..%c0%af..%c0%afetc/passwd",
)


def test_routes_of_the_reward_server(measured):
    with serving(constant) as url:
        port = int(url.rpartition(":")[2])
        for route in ROUTES:
            with socket.create_connection(("127.0.0.1", port), 10) as line:
                line.sendall(f"GET {route} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode("latin-1"))
                said = b"".join(iter(lambda line=line: line.recv(4096), b""))
            assert said.split(b" ", 2)[1] in (b"400", b"404", b"405"), (route, said)
            assert b"root:" not in said
    measured("traversal", routes=len(ROUTES))
