"""The how-to is run as it is printed: its code, its output, its file and its configuration."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from pcpo.data.prompts import Prompt
from pcpo.errors import PromptError
from pcpo.rewards import REWARDS, build_rewards
from pcpo.rewards.base import evaluate
from pcpo.rewards.registry import check_prompts

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "own-reward.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
IMAGES = torch.full((2, 3, 4, 4), 150, dtype=torch.uint8)


def of_kind(kind):
    return [text for language, text in BLOCKS if language == kind]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder that holds the page's files."""
    monkeypatch.chdir(tmp_path)
    for text in of_kind("python"):
        if name := re.match(r"# (\w+\.py)\n", text):
            (tmp_path / name[1]).write_text(text)
    return tmp_path


def test_code_runs_and_prints_what_the_page_shows(folder, capsys):
    names = {}
    for text in of_kind("python"):
        exec(compile(text, str(PAGE), "exec"), names)
    assert capsys.readouterr().out.strip() == "\n".join(of_kind("text")).strip()
    result = evaluate(names["counted"], IMAGES, ["a", "b"], [{"count": 2}, {}])
    assert result.valid.tolist() == [True, False] and result.values.tolist() == [150, 0]
    check_prompts(names["counted"], [Prompt("two cats", {"count": 2})], "counted")
    with pytest.raises(PromptError, match="prompt 'cats': no count"):
        check_prompts(names["counted"], [Prompt("cats")], "counted")


def test_configuration_builds(folder):
    mixed, clip = (yaml.safe_load(text)["reward"] for text in of_kind("yaml"))
    reward = build_rewards([(part["name"], part["weight"], part.get("options", {})) for part in mixed])
    assert evaluate(reward, IMAGES, ["a", "b"], [{}] * 2).values.tolist() == pytest.approx([-5, -5])
    assert clip[0]["name"] in REWARDS and set(clip[0]["options"]) <= {"model", "device", "batch_size"}
