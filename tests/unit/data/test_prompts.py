import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcpo.data import prompts as module
from pcpo.data.prompts import Prompt, embedded_prompt_sets, hold_out, load_prompts
from pcpo.errors import PromptError


def write(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_text_file_skips_blank_and_comment_lines(tmp_path):
    path = write(tmp_path, "p.txt", "\ufeff# emoji\n\n  a red apple \r\na cat\n\n#no\na cat")
    loaded = load_prompts(path)
    assert [p.text for p in loaded] == ["a red apple", "a cat", "a cat"]
    assert [p.id for p in loaded] == ["p0", "p1", "p2"]
    assert load_prompts(str(path)) == loaded


def test_only_line_feeds_split_lines(tmp_path):
    assert [p.text for p in load_prompts(write(tmp_path, "p.txt", "one\u2028two\nthree"))] == [
        "one\u2028two",
        "three",
    ]


def test_json_lines_carry_metadata_and_ids(tmp_path):
    path = write(tmp_path, "p.jsonl", '{"prompt": "sign", "id": 7, "text": "STOP"}\n\n{"prompt": "# not a comment"}\n')
    assert load_prompts(path) == [Prompt("sign", {"text": "STOP"}, "7"), Prompt("# not a comment", {}, "p1")]


def test_list_of_strings():
    assert load_prompts(["a", "b"]) == [Prompt("a", {}, "p0"), Prompt("b", {}, "p1")]


def test_embedded_set_by_name(tmp_path, monkeypatch):
    write(tmp_path, "tiny3.txt", "a\nb\nc\n")
    monkeypatch.setattr(module, "embedded_prompt_sets", lambda: {"tiny3": tmp_path / "tiny3.txt"})
    assert [p.text for p in load_prompts("tiny3")] == ["a", "b", "c"]
    with pytest.raises(PromptError, match=r"unknown prompt set 'tiny'.*did you mean 'tiny3'\? sets: tiny3"):
        load_prompts("tiny")


def test_every_set_in_the_package_loads():
    sets = embedded_prompt_sets()
    assert all(load_prompts(name) for name in sets)
    assert list(sets) == sorted(sets)


def test_the_sets_of_the_package_are_what_they_say():
    animals = [p.text for p in load_prompts("animals")]
    assert len(set(animals)) == 45 and animals[0] == "cat" and animals[-1] == "kangaroo"
    for name, least in (("ocr", 100), ("ocr_easy", 30)):
        prompts = load_prompts(name)
        assert len({p.text for p in prompts}) == len(prompts) >= least
        assert all(f'"{p.metadata["target"]}"' in p.text for p in prompts)
    assert all(p.metadata["target"].isalpha() for p in load_prompts("ocr_easy"))


def test_the_compositional_set_says_in_its_tags_what_its_texts_ask_for():
    prompts = load_prompts("compositional")
    assert len({p.text for p in prompts}) == len(prompts) >= 200
    numbers = {1: ("a ", "an "), 2: ("two ",), 3: ("three ",), 4: ("four ",)}
    for prompt in prompts:
        for part in prompt.metadata["include"]:
            thing = " ".join([*([part["color"]] if "color" in part else []), part["class"]])
            plural = "s" if part["count"] > 1 else ""
            assert any(f"{word}{thing}{plural}" in prompt.text for word in numbers[part["count"]]), prompt.text
            if "position" in part:
                relation, anchor = part["position"]
                other = prompt.metadata["include"][anchor]["class"]
                assert prompt.text.index(part["class"]) < prompt.text.index(relation) < prompt.text.rindex(other)
    tags = {"single_object", "two_object", "counting", "colors", "position", "color_attr", "color_count"}
    assert {p.metadata["tag"] for p in prompts} == tags


TEXTS = st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=30, max_size=60, unique=True)


@given(TEXTS, st.randoms())
def test_held_out_prompts_depend_on_their_own_text_alone(texts, random):
    def held(some):
        return {p.text for p in hold_out([Prompt(text) for text in [*some, *some]], 0.5)[1]}

    whole = held(texts)
    shuffled = random.sample(texts, len(texts))
    assert held(shuffled) == whole and held(shuffled[:28]) == whole & set(shuffled[:28])


def test_the_share_held_out():
    prompts = [Prompt(str(n)) for n in range(2000)]
    small, large = (hold_out(prompts, share) for share in (0.1, 0.3))
    assert len(small[1]) == pytest.approx(200, abs=40) and len(large[1]) == pytest.approx(600, abs=60)
    assert set(small[1]) < set(large[1]) and sorted([*small[0], *small[1]], key=lambda p: int(p.text)) == prompts
    for share, rest in ((1e-9, "to hold out"), (1 - 1e-9, "to train on")):
        with pytest.raises(PromptError, match=f"leaves none {rest}"):
            hold_out(prompts[:3], share)


TEXT_CASES = {
    "empty file": (b"", "p.txt: holds no prompt"),
    "only comments": (b"# a\n\n", "p.txt: holds no prompt"),
    "not UTF-8": (b"fine\n\xff\xfe", r"p.txt:2: is not UTF-8 \(byte 0xff\)"),
    "long line": (b"a\n" + b"x" * 2001, "p.txt:2: prompt of 2,001 characters -> .*2,000"),
    "NUL": (b"a\nb\x00c", r"p.txt:2: prompt holds control character U\+0000 at column 2"),
    "tab": (b"a\tb", r"p.txt:1: .*U\+0009"),
}


@pytest.mark.parametrize("case", TEXT_CASES)
def test_bad_text_files(tmp_path, case):
    data, message = TEXT_CASES[case]
    with pytest.raises(PromptError, match=message):
        load_prompts(write(tmp_path, "p.txt", data))


JSON_CASES = {
    "bad JSON": ('{"prompt": "a"}\n{"prompt": ', "p.jsonl:2: not JSON"),
    "deep JSON": (
        '{"prompt": "a", "m": ' + "[" * 30_000 + "]" * 30_000 + "}",
        "p.jsonl:1: JSON nested too deeply",
    ),
    "array": ('["a"]', "p.jsonl:1: JSON list, not an object"),
    "missing prompt": ('{"text": "a"}', 'p.jsonl:1: no key "prompt"'),
    "empty prompt": ('{"prompt": "  "}', "p.jsonl:1: prompt is empty"),
    "number": ('{"prompt": 3}', "p.jsonl:1: prompt is int, not text"),
    "null": ('{"prompt": null}', "p.jsonl:1: prompt is NoneType"),
    "long prompt": ('{"prompt": "' + "x" * 3000 + '"}', "p.jsonl:1: prompt of 3,000 characters"),
    "long line": ('{"prompt": "a", "m": "' + "x" * 70_000 + '"}', r"p.jsonl:1: line of 70,0\d\d characters"),
    "newline inside": ('{"prompt": "a\\nb"}', r"p.jsonl:1: .*U\+000A"),
    "lone surrogate": ('{"prompt": "a\\ud800"}', r"p.jsonl:1: .*U\+D800"),
    "NaN": ('{"prompt": "a", "x": NaN}', "p.jsonl:1: not JSON .NaN"),
    "huge number": ('{"prompt": "a", "x": ' + "1" * 5000 + "}", "p.jsonl:1: not JSON"),
    "double id": ('{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}', "p.jsonl:2: id 'x' .*p.jsonl:1"),
    "id type": ('{"prompt": "a", "id": [1]}', "p.jsonl:1: id is list"),
    "id bool": ('{"prompt": "a", "id": true}', "p.jsonl:1: id is bool"),
}


@pytest.mark.parametrize("case", JSON_CASES)
def test_bad_json_lines(tmp_path, case):
    text, message = JSON_CASES[case]
    with pytest.raises(PromptError, match=message):
        load_prompts(write(tmp_path, "p.jsonl", text))


def test_bad_places(tmp_path):
    (tmp_path / "folder.txt").mkdir()
    os.mkfifo(tmp_path / "pipe.txt")
    cases = {
        tmp_path / "none.txt": "none.txt: no such file",
        "none.jsonl": "none.jsonl: no such file",
        tmp_path / "folder.txt": "folder.txt: is a folder",
        tmp_path / "pipe.txt": "is not a regular file",
        tmp_path / "table.csv": "file type '.csv' is not known",
        "a\x00b.txt": "cannot be read",
        "x" * 5000 + ".txt": "cannot be read",
        "": "unknown prompt set",
        5: "prompts come as int",
        b"a": "prompts come as bytes",
    }
    for source, message in cases.items():
        with pytest.raises(PromptError, match=message):
            load_prompts(source)
    for source, message in {
        ("a", ""): "item 1: prompt is empty",
        (): "holds no prompt",
        (3,): "is int",
    }.items():
        with pytest.raises(PromptError, match=message):
            load_prompts(source)


def test_large_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "big.txt"
    with path.open("wb") as file:
        file.truncate(module.MAX_FILE_BYTES + 1)  # sparse: takes no room
    with pytest.raises(PromptError, match="is larger than 64 MiB"):
        load_prompts(path)


json_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text())
records = st.dictionaries(st.sampled_from(["prompt", "id", "x"]), json_values)
lines = st.lists(records.map(json.dumps)).map(lambda rows: "\n".join(rows).encode())


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=300) | lines, suffix=st.sampled_from(module.SUFFIXES))
def test_any_bytes_give_prompts_or_a_prompt_error(data, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"fuzz{suffix}"
        path.write_bytes(data)
        try:
            loaded = load_prompts(path)
        except PromptError as error:
            assert str(path) in str(error)
            return
    assert loaded
    for prompt in loaded:
        assert prompt.text == prompt.text.strip() != ""
        prompt.text.encode()


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30) | st.lists(st.text(max_size=5) | st.integers(), max_size=4))
def test_any_source_gives_prompts_or_a_prompt_error(source):
    try:
        assert load_prompts(source)
    except PromptError as error:
        assert error.fix
