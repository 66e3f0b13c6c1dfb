"""Generated pages are fresh; tables that stand elsewhere too agree with it."""

from __future__ import annotations

import importlib.util
import json

import pytest

from pages import DOCS, ROOT, name, rows
from pcpo.observe import records


def load(path):
    """A Python file that belongs to no package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = load(ROOT / "tools" / "generate_reference.py")
WRITTEN = GENERATOR.pages()
REFERENCE = DOCS / "reference"


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_generated_pages_are_fresh(page):
    assert page.read_text("utf-8") == WRITTEN[page], "run: python tools/generate_reference.py"


@pytest.mark.parametrize("page", ["configuration.md", "cli.md", "presets.md"])
def test_every_row_states_a_meaning(page):
    for line in WRITTEN[REFERENCE / page].splitlines():
        assert not line.endswith("|  |"), line


def test_every_setting_is_listed():
    from pcpo.trainer.config import Config

    text = WRITTEN[REFERENCE / "configuration.md"]

    def walk(value, path):
        for key, inner in value.items():
            here = f"{path}.{key}" if path else key
            if isinstance(inner, dict):
                walk(inner, here)
            else:
                assert f"| `{here}` |" in text, here

    walk(Config().model_dump(), "")


def test_the_credit_table_holds_the_published_figures():
    table = GENERATOR.credit_table()
    for figure in ("8.75 : 1", "0.5169", "22.2 : 1", "26.1 : 1", "3.39 : 1", "4.315213464", "13.34319091"):
        assert figure in table, figure
    credit = json.loads((ROOT / "tests" / "golden" / "credit.json").read_text())
    zetas = [case["zeta_all_steps"] for case in credit if "zeta_all_steps" in case]
    assert len(zetas) == 2 and all(f"{zeta:.10g}" in table for zeta in zetas)


def test_the_table_of_marginals_is_the_law():
    law = load(ROOT / "tests" / "laws" / "test_marginals.py").FINAL_STD
    page = rows(
        DOCS / "explanation" / "equations.md",
        "**What the samplers do to the marginals.** Data N(1, 0.5^2), the "
        "exact velocity, a uniform grid, last step ODE: the final",
    )
    assert [cells[0] for cells in page] == ["10", "50", "1000"]
    for place, expected in enumerate(law.values(), start=1):
        assert tuple(float(cells[place]) for cells in page) == expected


EVENTS = {
    "run_start": records.RunStart,
    "credit": records.Credit,
    "iteration": records.Iteration,
    "evaluation": records.Evaluation,
    "gradient_share": records.GradientShare,
    "checkpoint": records.Checkpoint,
    "warning": records.RunWarning,
    "run_end": records.RunEnd,
}


@pytest.mark.parametrize("kind", EVENTS)
def test_run_folder_page_lists_exactly_the_fields_of_an_event(kind):
    listed = [part for cells in rows(REFERENCE / "run-folder.md", f"### {kind}") for part in cells[0].split("`")[1::2]]
    assert sorted(listed) == sorted(EVENTS[kind].model_fields)
