"""Text speaks of the project alone: nothing about where or by what it was written."""

from __future__ import annotations

import re

import pytest

from pages import ROOT

SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".css", ".js", ".sh", ""}
FOLDERS = ("src", "tests", "docs", "tools", "recipes", "examples", "benchmarks", ".ci", "constraints")
FILES = sorted(
    path
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*")
    if path.is_file() and path.suffix in SUFFIXES and not any("cache" in p or ".egg" in p for p in path.parts)
) + sorted(p for p in ROOT.iterdir() if p.is_file() and p.suffix in SUFFIXES and p.name != ".git")

# written apart, so that this file does not hold them
PATHS = [re.compile("/" + folder + r"(?=[/\s\"'`]|$)", re.MULTILINE) for folder in ("work", "root")]
HOSTS = [re.compile(r"\b" + host) for host in ("registry" + r"\.npm", "files" + r"\.pythonhosted", "pypi" + r"\.org")]
WORDS = re.compile(r"\b(" + "|".join(("sess" + "ions?", "help" + "ers?", "ag" + "ents?")) + r")\b", re.IGNORECASE)
# pytest's scope and the browser protocol have this word of their own
ALLOWED = re.compile(r'scope="sess' + r'ion"|self\.sess' + r"ion\b|\(sess" + r"ion\)|\bsess" + r"ion\.config\b")


def test_there_are_files():
    assert len(FILES) > 100


@pytest.mark.parametrize("pattern", [*PATHS, *HOSTS, WORDS], ids=lambda p: p.pattern[:20])
def test_nothing_of_the_kind_is_written(pattern):
    found = []
    for path in FILES:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            if pattern.search(ALLOWED.sub("", line)):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_code_is_ascii():
    for path in FILES:
        if path.suffix == ".py":
            assert path.read_bytes().isascii(), path
