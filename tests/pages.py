"""The project's pages, as the tests of the documentation read them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *DOCS.rglob("*.md")])


def name(page: Path) -> str:
    """A page's path from the root, to label tests."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [text for kind, text in found if kind == language]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def write_files(page: Path, folder: Path) -> None:
    """Save the blocks that begin with `# name.py` or `# name.yaml` under that name."""
    for text in [*blocks(page, "python"), *blocks(page, "yaml")]:
        if title := re.match(r"# (\w+\.(?:py|yaml))\n", text):
            (folder / title[1]).write_text(text, "utf-8")


def rows(page: Path, heading: str) -> list[list[str]]:
    """Cells of the first table after a heading, without its head."""
    section = page.read_text("utf-8").split(f"{heading}\n", 1)[1]
    lines = re.search(r"(?:^\|.*\n?)+", section, flags=re.MULTILINE)
    assert lines, heading
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[0].splitlines()[2:]]
