"""Where hostile contents are put: copies of a small run, pipeline, study and so on, with one file changed in each."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from security.spoilt import JSONS, NOT_FILES, SAFETENSORS, YAMLS, Made, altered, pictures, put

CONFIG = """
preset: pcpo_sd
name: tiny
model: {{path: {model}, lora: {{rank: 4}}}}
prompts: [red, "a blue boat"]
sampler: {{steps: 2}}
batch: {{prompts: 2, group_size: 2}}
train: {{iterations: 2, updates: 1}}
evaluation: {{every: 1, num_prompts: 2, per_prompt: 1, steps: 2, credit_probe: 0}}
run: {{device: cpu, checkpoint_every: 1, output: {output}}}
"""
STUDY = """
name: tiny
base: {{preset: pcpo_sd, set: {{prompts: [red], train.iterations: 1}}}}
models: {{small: {{path: {model}}}}}
rewards: {{colorfulness: }}
arms: {{native: {{set: {{credit.schedule: native}}}}, pcpo: }}
seeds: [0]
"""
# One cell that takes a moment
RUN_STUDY = """
name: tiny
base:
  preset: pcpo_sd
  set:
    prompts: [red, "a blue boat"]
    model.lora.rank: 4
    sampler.steps: 2
    batch: {{prompts: 2, group_size: 2}}
    train: {{iterations: 1, updates: 1}}
    evaluation: {{every: 1, num_prompts: 2, per_prompt: 1, steps: 2, credit_probe: 0}}
    run: {{device: cpu, threads: 1, checkpoint_every: 1}}
models: {{small: {{path: {model}}}}}
rewards: {{colorfulness: }}
arms: {{pcpo: }}
seeds: [0]
"""
ONE_PICTURE = ["-n", "1", "--steps", "1"]
COMMAND = {
    "resume": ["train", "{place}/config.yaml", "--output", "{place}", "--resume", "--quiet"],
    "sample": ["sample", "{place}", "-p", "red", *ONE_PICTURE, "-o", "{place}/pictures"],
    "export": ["export", "{place}", "-o", "{place}/exported"],
    "report": ["report", "{place}"],
    "eval": ["eval", "{place}", *ONE_PICTURE, "--prompts", "common50", "-q"],
    "compare": ["compare", "{place}", "{place}@1", *ONE_PICTURE, "--limit", "1", "-q", "-o", "{place}/compared"],
    "validate": ["validate", "{place}/config.yaml", "--set", "run.output={place}/new"],
    "plan": ["plan", "{place}/config.yaml", "--no-probe", "--memory", "8"],
    "profile": ["profile", "{place}/config.yaml", "-o", "{place}/trace.json"],
    "models-check": ["models", "check", "{place}", "--steps", "2"],
    "plan-model": ["plan", "pcpo_sd", "--no-probe", "--memory", "8", "--set", "model.path={place}"],
    "reuse": ["study", "run", "{place}/study.yaml", "-o", "{place}/new", "--reuse", "{place}", "-q"],
    "study-status": ["study", "status", "{place}"],
    "study-report": ["study", "report", "{place}"],
    "study-archive": ["study", "archive", "{place}", "{place}/kept"],
}


@dataclass(frozen=True)
class Case:
    """One hostile file: its place (a label), what it holds (a label), and the job that meets it.

    may_pass: these contents are no fault here, so "ok" is right as well
    """

    place: str
    content: str
    job: str
    arguments: tuple[str, ...]
    make: Callable[[], object]
    may_pass: bool = False

    @property
    def name(self) -> str:
        """To be read in a failure."""
        return f"{self.place}: {self.content}"


def copy(source: Path, target: Path) -> Path:
    """A tree of hard links: files are replaced in it, never written to."""
    return Path(shutil.copytree(source, target, copy_function=os.link))


class Cases:
    """Makes them below `root`, out of a run, a pipeline folder and a finished study that are sound."""

    def __init__(self, root: Path, run: Path, pipeline: Path, study: Path) -> None:
        self.root, self.run, self.pipeline, self.study = root, run, pipeline, study
        self.count = 0

    def all(self) -> Iterator[Case]:
        """Every case, the readers of single files first."""
        for group in GROUPS:
            yield from getattr(self, group)()

    def files(self) -> Iterator[Case]:
        """Files that are read by themselves."""
        yield from self.single("prompts", "p.jsonl", JSONS | NOT_FILES, may_pass={"duplicates"})
        yield from self.single("prompts", "p.txt", TEXTS | NOT_FILES)
        yield from self.single("config", "c.yaml", YAMLS | NOT_FILES, may_pass={"sexagesimal", "set", "binary-tag"})
        yield from self.single("study", "s.yaml", YAMLS | NOT_FILES)
        yield from self.single("image", "i.png", pictures() | NOT_FILES, may_pass=DECODES)
        yield from self.single("reply", "r.json", JSONS)
        yield from self.single("request", "r.json", JSONS)

    def checkpoints(self) -> Iterator[Case]:
        """What a run is resumed from."""
        yield from self.within("checkpoint", self.newest(), "*.json", JSONS | NOT_FILES)
        yield from self.within("checkpoint", self.newest(), "*.safetensors", SAFETENSORS | NOT_FILES)
        yield from self.within("resume", self.run, "events.jsonl", FEW_LINES | NOT_FILES)

    def runs(self) -> Iterator[Case]:
        """The folder of a run, to be looked at, sampled from, exported and compared."""
        drawn, weights = pictures(), SAFETENSORS | NOT_FILES
        few = {name: drawn[name] for name in FEW_PICTURES}
        yield from self.within("report", self.run, "events.jsonl", LINES | NOT_FILES, may_pass={"empty", "surrogate"})
        yield from self.within("report", self.run, "images/*/00.png", few | NOT_FILES, may_pass=ANY)
        yield from self.within("sample", self.run, "config.yaml", YAMLS | NOT_FILES)
        for command in ("sample", "export", "compare"):
            yield from self.within(command, self.run, "lora/*.safetensors", weights)
        yield from self.within("compare", self.run, "config.yaml", FEW_YAMLS | NOT_FILES)
        yield from self.within("compare", self.run, "checkpoints/000001/*", FEW_WEIGHTS | NOT_FILES, may_pass=ANY)
        yield from self.within("export", self.run, "events.jsonl", FEW_JSONS | NOT_FILES, may_pass=ANY)
        yield from self.within("eval", self.run, "lora/*.safetensors", FEW_WEIGHTS | NOT_FILES)
        for command in ("validate", "plan", "profile"):
            yield from self.within(command, self.run, "config.yaml", FEW_YAMLS | NOT_FILES)

    def models(self) -> Iterator[Case]:
        """The folder of a pipeline."""
        model, jsons = self.pipeline, FEW_JSONS | NOT_FILES
        yield from self.within("model", model, "model_index.json", JSONS | NOT_FILES)
        yield from self.within("model", model, "unet/config.json", jsons)
        yield from self.within("model", model, "scheduler/*.json", jsons)
        yield from self.within("model", model, "tokenizer/tokenizer.json", jsons, may_pass={"folder"})
        yield from self.within("model", model, "text_encoder/*.safetensors", SAFETENSORS | NOT_FILES)
        yield from self.within("model", model, "unet/*.safetensors", SAFETENSORS | NOT_FILES)
        for command in ("models-check", "plan-model"):
            yield from self.within(command, model, "model_index.json", jsons)
            yield from self.within(command, model, "unet/config.json", jsons)
        yield from self.within("models-check", model, "unet/*.safetensors", FEW_WEIGHTS | NOT_FILES)

    def studies(self) -> Iterator[Case]:
        """The folder of a study, or an archive: its results are taken over, shown, reported on and archived."""
        results = next(self.study.glob("cells/*/results.json")).relative_to(self.study)
        wrong = altered(json.loads((self.study / results).read_text("utf-8")))
        for command in ("reuse", "study-report"):
            yield from self.within(command, self.study, str(results), wrong, may_pass=ANY)  # not every value is used
        absent = {"folder", "link-to-itself"}  # such a cell has no results and is run
        yield from self.within("reuse", self.study, str(results), JSONS | NOT_FILES, may_pass=absent)
        for command in ("study-status", "study-report", "study-archive"):
            yield from self.within(command, self.study, str(results), FEW_JSONS | NOT_FILES, may_pass=ANY)
            yield from self.within(command, self.study, "study.yaml", FEW_YAMLS | NOT_FILES)
            yield from self.within(command, self.study, "claims/*.0.json", FEW_JSONS | NOT_FILES, may_pass=ANY)
            yield from self.within(command, self.study, "cells/*/events.jsonl", FEW_LINES | NOT_FILES, may_pass=ANY)

    def newest(self) -> Path:
        """The run's newest checkpoint."""
        return sorted((self.run / "checkpoints").iterdir())[-1]

    def single(
        self, job: str, name: str, contents: Mapping[str, Made], may_pass: frozenset[str] | set[str] = frozenset()
    ) -> Iterator[Case]:
        """A file by itself."""
        for content, made in contents.items():
            path = self._new() / name
            yield Case(
                f"{job} {name}",
                content,
                job,
                (str(path),),
                lambda path=path, made=made: put(path, made),
                content in may_pass,
            )

    def within(
        self,
        job: str,
        source: Path,
        pattern: str,
        contents: Mapping[str, Made],
        may_pass: frozenset[str] | set[str] = frozenset(),
    ) -> Iterator[Case]:
        """Files in a copy of a folder; `job` is a job of the worker, or a command on the copy."""
        for path, (content, made) in product(sorted(source.glob(pattern)), contents.items()):
            place = self._new() / "place"
            file = place / path.relative_to(source)

            def make(place: Path = place, file: Path = file, made: Made = made) -> None:
                copy(source, place)
                put(file, made)

            name = f"{job} {path.relative_to(source)}"
            arguments = tuple(word.format(place=place) for word in COMMAND.get(job, ["{place}"]))
            allowed = may_pass is ANY or content in may_pass
            yield Case(name, content, "command" if job in COMMAND else job, arguments, make, allowed)

    def _new(self) -> Path:
        self.count += 1
        folder = self.root / f"{self.count:04d}"
        folder.mkdir()
        return folder


GROUPS = ("files", "checkpoints", "runs", "models", "studies")
TEXTS: dict[str, Made] = {
    "empty": b"",
    "blank": b"\n \n\n",
    "only-comments": b"# a\n# b\n",
    "nul": b"red\0apple\n",
    "escape": b"red \x1b[2J apple\n",
    "utf16": "red\nblue\n".encode("utf-16"),
    "not-utf8": b"red \xff apple\n",
    "overlong-utf8": b"red \xc0\xaf apple\n",
    "surrogate-utf8": b"red \xed\xa0\x80 apple\n",
    "long-line": b"x" * 1_000_000,
    "backspace": b"red\x08\x08\x08blue\n",
}
DECODES = {"text-chunks", "pixel-bomb", "wrong-checksum", "profile-bomb", "few-pixels"}
ANY: frozenset[str] = frozenset({"any"})
FEW_JSONS = {name: JSONS[name] for name in ("empty", "pickle", "not-utf8", "closed-deep-list", "huge-integer", "list")}
LINES = {name: made + b"\n" if isinstance(made, bytes) else made for name, made in JSONS.items() if name != "pickle"}
FEW_LINES = {name: LINES[name] for name in ("nul", "not-utf8", "closed-deep-list", "huge-integer", "list", "null")}
FEW_WEIGHTS = {name: SAFETENSORS[name] for name in ("pickle", "torch-archive", "overlap", "huge-header-length")}
FEW_PICTURES = ("bomb", "pickle", "truncated", "text-bomb")
FEW_YAMLS = {name: YAMLS[name] for name in ("bomb", "python-object", "duplicate-key", "deep-list", "nul", "not-utf8")}
