"""The performance page is what its script writes from the committed results."""

from __future__ import annotations

import page


def test_the_page_is_up_to_date():
    assert page.PAGE.read_text("utf-8") == page.page(), "run python benchmarks/page.py"
    assert page.FIGURE.is_file()


def test_every_section_shows_how_it_was_measured():
    text = page.page()
    for name in page.SECTIONS:
        found = page.load(name)
        if found is not None:
            assert page.machine(found) in text
    assert "dropped" in text and "kept" in text
