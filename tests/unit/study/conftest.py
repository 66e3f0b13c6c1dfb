"""A study file on a tiny pipeline."""

from __future__ import annotations

import pytest

STUDY = """
name: tiny
base:
  preset: pcpo_sd
  set:
    prompts: [red, a blue boat]
    model: {{path: {model}, lora: {{rank: 4}}}}
    sampler.steps: 3
    batch: {{prompts: 2, group_size: 2}}
    train.iterations: 2
    evaluation: {{every: 1, num_prompts: 2, per_prompt: 1, credit_probe: 0, rewards: [jpeg_compressibility]}}
    run: {{device: cpu, threads: 1, checkpoint_every: 1}}
models: {{m: }}
rewards: {{colorfulness: }}
arms:
  native: {{set: [credit.schedule=native, objective.name=ppo_clip]}}
  pcpo:
seeds: [0, 1]
"""


@pytest.fixture
def study_file(folders, tmp_path):
    """`study_file(old=new, ...)`: the path of the tiny study with texts replaced."""

    def make(*replacements, name="study.yaml"):
        text = STUDY.format(model=folders["sd"])
        for old, new in replacements:
            assert old in text, old
            text = text.replace(old, new)
        path = tmp_path / name
        path.write_text(text, "utf-8")
        return path

    return make


@pytest.fixture(scope="module")
def finished(folders, tmp_path_factory):
    """Folder of a study of one seed that has been run (`out`), with its file (`study.yaml`) and archive (`archive`)."""
    from pcpo.study.archive import write_archive
    from pcpo.study.runner import run_study

    root = tmp_path_factory.mktemp("finished")
    (root / "study.yaml").write_text(STUDY.format(model=folders["sd"]).replace("[0, 1]", "[0]"), "utf-8")
    run_study(root / "study.yaml", root / "out", quiet=True)
    assert write_archive(root / "out", root / "archive") == 2
    return root
