"""The code of docs/how-to/add-a-family.md runs as printed, with a tiny pipeline in the place of the embedded one."""

from __future__ import annotations

from pages import DOCS, blocks


def test_the_page_runs(folders):
    names: dict = {}
    texts = blocks(DOCS / "how-to/add-a-family.md", "python")
    for text in texts:
        exec(text.replace('"emoji-sd3"', repr(str(folders["sd3"]))), names)
    assert len(texts) == 3 and names["adapter"].pipeline_class == "StableDiffusion3Pipeline"
