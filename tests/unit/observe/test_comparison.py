"""The page of `pcpo compare`: figures, escaping, policy, size."""

from __future__ import annotations

import re
from html import unescape

import pytest
import torch

from pcpo.observe.comparison import Row, page
from pcpo.observe.pictures import BUDGET

SETTINGS = {"count": 2, "steps": 20, "guidance_scale": 5.0, "seed": 3}
NAN = float("nan")


def pictures(count=2, side=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def rows(prompt="red apple", values=({}, {})):
    return [Row(prompt, [pictures(seed=1), pictures(seed=2)], values)]


def cells(html):
    return [re.findall(r"<t[dh]>(.*?)</t[dh]>", line) for line in re.findall(r"<tr>(.*?)</tr>", html)]


def test_means_and_paired_differences():
    html = page(["base", "tuned"], rows(values=({"r": [1.0, 2.0]}, {"r": [2.0, 2.0]})), SETTINGS)
    assert cells(html)[1:] == [["base", "1.5 \u00b1 0.5", "", ""], ["tuned", "2 \u00b1 0", "+0.5 \u00b1 0.5", "50.0 %"]]
    assert html.count("<img ") == 4 and "base against tuned" in html


def test_an_abstention_is_left_out_of_pairs():
    html = page(["a", "b"], rows(values=({"r": [1.0, NAN]}, {"r": [3.0, 9.0]})), SETTINGS)
    assert cells(html)[2] == ["b", "6 \u00b1 3", "+2", "100 %"]
    html = page(["a", "b"], rows(values=({"r": [NAN, NAN]}, {"r": [NAN, NAN]})), SETTINGS)
    assert cells(html)[2] == ["b", "n/a", "n/a", "n/a"] and "nan" not in html


def test_without_rewards_there_is_no_table():
    html = page(["a", "b", "c"], [Row("red", [pictures()] * 3, [{}] * 3)], SETTINGS)
    assert "<table" not in html and "a against b and c" in html


@pytest.mark.parametrize("place", ["prompt", "name", "reward"])
def test_nothing_becomes_markup(place):
    hostile = "</section><script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    words = {"prompt": "red", "name": "tuned", "reward": "r"} | {place: hostile}
    values = ({words["reward"]: [1.0, 2.0]}, {words["reward"]: [2.0, 3.0]})
    html = page(["base", words["name"]], rows(words["prompt"], values), SETTINGS)
    assert "<script" not in html and "onerror=alert(1)>" not in html and "&lt;script&gt;" in html
    policy = unescape(re.search('Content-Security-Policy" content="(.*?)"', html)[1])
    assert "default-src 'none'" in policy and "script-src 'none'" in policy
    assert not re.findall(r'(?:src|href)="(?!data:image/)', html)


def test_many_large_pictures_stay_within_the_budget():
    large = [Row("red", [pictures(4, 256, seed) for seed in range(3)], [{}] * 3) for _ in range(12)]
    assert len(page(["a", "b", "c"], large, SETTINGS)) < 1.5 * BUDGET
