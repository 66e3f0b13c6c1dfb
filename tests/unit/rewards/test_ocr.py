import functools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from pcpo.data.prompts import Prompt
from pcpo.errors import PromptError, RewardError
from pcpo.rewards import check_reward, load_reward
from pcpo.rewards.base import evaluate
from pcpo.rewards.checker import probe_pictures
from pcpo.rewards.ocr import edit_distance, score, target_of
from pcpo.rewards.registry import check_built_ins

pytest.importorskip("rapidocr", reason="needs the extra ocr")
WORDS = st.text("ab ", max_size=6)


@pytest.fixture(scope="module")
def ocr():
    return load_reward("ocr")


def rendered(text, size, side=(480, 160)):
    """uint8 [3, H, W]: black text of Pillow's own font on white."""
    picture = Image.new("RGB", side, "white")
    ImageDraw.Draw(picture).text((20, 40), text, font=ImageFont.load_default(size), fill="black")
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


@pytest.mark.parametrize("size", [32, 48, 64])
def test_reads_rendered_words(ocr, size):
    words = ["CAT", "OPEN", "Hello World", "Exit 42"]
    images = torch.stack([rendered(word, size) for word in words])
    right = evaluate(ocr, images, [f'a sign that says "{word}"' for word in words], [{}] * 4)
    assert right.values.tolist() == [1, 1, 1, 1]
    swapped = evaluate(ocr, images, ["x"] * 4, [{"target": word} for word in words[::-1]])
    assert swapped.values.max() < 0.5


def test_the_checker_shows_it_text(ocr):
    assert check_reward(ocr) == []


def test_a_near_miss_costs_its_share(ocr):
    image = rendered("COFFEE", 48)[None]
    values = [
        evaluate(ocr, image, [f'"{asked}"'], [{}]).values.item() for asked in ("COFFEE", "TOFFEE", "TOFFEES", "ZZ")
    ]
    assert values == pytest.approx([1, 1 - 1 / 6, 1 - 2 / 7, 0])


def test_colours_come_in_the_right_order(ocr, monkeypatch):
    seen = []
    engine = ocr.engine
    monkeypatch.setattr(ocr, "engine", lambda picture, **use: seen.append(picture.copy()) or engine(picture, **use))
    ocr(torch.tensor([200, 100, 50], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 64, 64), ['"A"'], [{}])
    assert seen[0][0, 0].tolist() == [50, 100, 200]  # the engine takes BGR


def test_pictures_without_text_and_of_any_kind(ocr):
    asked = ['"CAT"'] * 6
    result = evaluate(ocr, probe_pictures(), asked, [{}] * 6)
    assert ((result.values >= 0) & (result.values <= 1)).all()
    assert torch.equal(result.values, evaluate(ocr, probe_pictures(), asked, [{}] * 6).values)


def test_passes_the_checker(ocr):
    images = torch.stack([rendered(word, 48) for word in ("CAT", "CAR", "DOG")])
    assert check_reward(ocr, images=images, prompts=['"CAT"'] * 3, max_seconds=20) == []


@pytest.mark.parametrize(
    ("recognised", "target", "expected"),
    [
        ("", "OPEN", 0),
        ("o p e n", "OPEN", 1),
        ("open now", "OPEN", 1),
        ("opem", "OPEN", 0.75),
        ("something else", "OPEN", 0),
        ("ope", "OPEN", 0.75),
    ],
)
def test_scores_by_hand(recognised, target, expected):
    assert score(recognised, target) == expected


@functools.cache
def naive_distance(a, b):
    if not a or not b:
        return len(a) + len(b)
    if a[0] == b[0]:
        return naive_distance(a[1:], b[1:])
    return 1 + min(naive_distance(a[1:], b), naive_distance(a, b[1:]), naive_distance(a[1:], b[1:]))


@given(WORDS, WORDS)
def test_edit_distance_is_its_recursion(a, b):
    assert edit_distance(a, b) == naive_distance(a, b)


@given(WORDS, WORDS.filter(str.strip))
def test_a_score_is_a_share(recognised, target):
    assert 0 <= score(recognised, target) <= 1
    assert score(recognised + target, target) == score(target, target) == 1


def test_where_the_target_is_from():
    assert target_of('a sign "Stop Here" and "not this"', {}) == "Stop Here"
    assert target_of("a sign \u201cStop\u201d", {}) == "Stop"
    assert target_of('a sign "Stop"', {"target": "Go"}) == "Go"
    for prompt, metadata in [("a sign", {}), ('""', {}), ('" "', {}), ('"a"', {"target": 3}), ('"a"', {"target": ""})]:
        with pytest.raises(PromptError, match=r"prompt .* -> the reward ocr reads the text in double quotes"):
            target_of(prompt, metadata)


def test_prompts_and_options_are_refused_before_the_engine_is_made(monkeypatch):
    monkeypatch.setattr("pcpo.rewards.ocr.OCR.__init__", lambda self, threads=1: pytest.fail("made"))
    fine = Prompt('a "sign"')
    check_built_ins([("ocr", {"threads": 1})], [fine])
    with pytest.raises(PromptError, match="prompt 'red apple': no text to read"):
        check_built_ins([("colorfulness", {}), ("ocr", {})], [fine, Prompt("red apple")])
    with pytest.raises(RewardError, match=r"options do not fit .*'speed'"):
        check_built_ins([("ocr", {"speed": 1})], [fine])


def test_without_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RewardError, match=r"reward 'ocr': needs rapidocr -> pip install \"pcpo\[ocr\]\""):
        check_built_ins([("ocr", {})], [])
    monkeypatch.setitem(__import__("sys").modules, "rapidocr", None)
    with pytest.raises(RewardError, match=r"rapidocr cannot be imported .* pip install \"pcpo\[ocr\]\""):
        load_reward("ocr")
