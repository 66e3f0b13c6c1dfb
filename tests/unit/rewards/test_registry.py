import subprocess
import sys

import pytest
import torch

from pcpo import rewards
from pcpo.errors import RewardError
from pcpo.rewards import REWARDS, build_rewards, load_reward
from pcpo.rewards.base import evaluate
from pcpo.rewards.builtin import colorfulness

USER_FILE = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Brightness:
    scale: float
    offset: float = 0.0

    def __call__(self, images, prompts, metadata):
        return images.float().mean(dim=(1, 2, 3)) * self.scale + self.offset

def red(images, prompts, metadata):
    return images[:, 0].float().mean(dim=(1, 2))

ready = Brightness(1.0)
constant = 3

class Silent:
    pass

class Broken:
    def __init__(self):
        raise OSError("no weights")
"""
IMAGES = torch.full((2, 3, 4, 4), 10, dtype=torch.uint8)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(USER_FILE)
    return path


def run(reward):
    return evaluate(reward, IMAGES, ["a", "b"], [{}] * 2)


def test_every_built_in_names_code_that_exists():
    import importlib

    for name, spec in REWARDS.items():
        module, attribute = spec.target.split(":")
        assert callable(getattr(importlib.import_module(module), attribute)), name
        assert spec.summary and spec.source and "\n" not in spec.summary
    assert list(REWARDS) == sorted(REWARDS)


def test_forms_of_a_name(file):
    assert load_reward("colorfulness") is colorfulness
    assert load_reward("pcpo.rewards.builtin:colorfulness") is colorfulness
    assert run(load_reward(f"{file}:red")).values.tolist() == [10, 10]
    assert run(load_reward(f"{file}:Brightness", scale=2, offset=1)).values.tolist() == [21, 21]
    assert run(load_reward(f"{file}:ready")).values.tolist() == [10, 10]


def test_an_edited_file_is_read_again(file):
    load_reward(f"{file}:red")
    file.write_text("def red(images, prompts, metadata):\n    return [5.0 for _ in prompts]\n")
    assert run(load_reward(f"{file}:red")).values.tolist() == [5, 5]


def test_parts_are_built_and_reported_by_name(file):
    mixed = build_rewards([("colorfulness", 1, {}), (f"{file}:Brightness", 2, {"scale": 1}), (f"{file}:red", 0, {})])
    result = run(mixed)
    assert result.values.tolist() == [20, 20]
    assert list(result.info) == ["colorfulness", "Brightness", "red"]
    twice = build_rewards([(f"{file}:Brightness", 1, {"scale": s}) for s in (1, 2, 3)])
    assert {key: part[0].item() for key, part in run(twice).info.items()} == {
        "Brightness": 10,
        "Brightness_2": 20,
        "Brightness_3": 30,
    }


BAD_NAMES = {
    "colourfulness": "unknown name -> did you mean 'colorfulness'",
    "zzz": "unknown name -> known: aesthetic, clip_score, colorfulness",
    "": "unknown name",
    ":": "not of the form module:function",
    "mine.py": "names a file only -> write mine.py:function",
    "none.py:f": "no such file",
    "no_such_module_here:f": "no module 'no_such_module_here'",
    "pcpo.rewards.none:f": "no module 'pcpo.rewards.none'",
    "pcpo.rewards.builtin:colourfulness": "has no 'colourfulness' -> did you mean 'colorfulness'",
    "FILE:constant": "is int, not callable",
    "FILE:Silent": "instances are not callable",
    "FILE:Broken": "could not be made: OSError: no weights",
    "FILE:Brightness": "options do not fit .*'scale'",
    "builtins:dict": "options do not fit",
}


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names(name, file):
    with pytest.raises(RewardError, match=BAD_NAMES[name]) as caught:
        load_reward(name.replace("FILE", str(file)))
    assert caught.value.fix and "\n" not in str(caught.value)


def test_options_that_do_not_fit(file):
    with pytest.raises(RewardError, match=r"options do not fit .*'colour'"):
        load_reward(f"{file}:Brightness", scale=1, colour="red")
    with pytest.raises(RewardError, match=r"a function takes no options, got name, scale"):
        load_reward(f"{file}:red", name="x", scale=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def red(:\n", "import raised SyntaxError"),
        (
            "import no_such_dependency\n",
            "import raised ModuleNotFoundError: No module named 'no_such_dependency'",
        ),
        ("raise SystemExit(3)\n", "import raised SystemExit: 3"),
        ("1 / 0\n", "import raised ZeroDivisionError"),
    ],
)
def test_files_that_fail_on_import(file, text, message):
    file.write_text(text)
    before = set(sys.modules)
    with pytest.raises(RewardError, match=message):
        load_reward(f"{file}:red")
    assert not {name for name in set(sys.modules) - before if name.startswith("pcpo_user")}


def test_listing_loads_no_torch():
    code = "import sys; from pcpo.rewards import REWARDS; print(len(REWARDS), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(REWARDS)), "False"]


def test_package_names_resolve():
    assert all(getattr(rewards, name) is not None for name in rewards.__all__)
    with pytest.raises(AttributeError, match=r"no attribute 'nothing'"):
        _ = rewards.nothing
