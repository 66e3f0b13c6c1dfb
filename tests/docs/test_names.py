"""Names that the pages use exist, and names that the package offers are documented."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import pcpo
from pages import DOCS, PAGES, ROOT, name, rows
from pcpo.advantages import ADVANTAGES
from pcpo.credit import APPLY, CREDIT
from pcpo.models.loading import FAMILIES
from pcpo.objectives import OBJECTIVES, PENALTIES
from pcpo.rewards import REWARDS
from pcpo.samplers import SAMPLERS
from pcpo.trainer import config
from pcpo.trainer.runfolder import EXECUTION_KEYS

EQUATIONS = DOCS / "explanation" / "equations.md"
ARCHITECTURE = DOCS / "explanation" / "architecture.md"
MODULES = [m.name for m in pkgutil.walk_packages(pcpo.__path__, "pcpo.") if not m.name.endswith("__main__")]


def find(dotted):
    """The object of a dotted name; AttributeError or ImportError if there is none."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise ImportError(dotted)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_dotted_names_resolve(page):
    for dotted in set(re.findall(r"(?<![\w/.-])pcpo(?:\.[A-Za-z_]\w*)+", page.read_text("utf-8"))):
        assert find(dotted) is not None, dotted


@pytest.mark.parametrize("dotted", ["pcpo.samplers.nothing", "pcpo.nothing.at_all"])
def test_a_wrong_name_does_not(dotted):
    with pytest.raises((AttributeError, ImportError)):
        find(dotted)


@pytest.mark.parametrize(
    "registry, heading",
    [
        (SAMPLERS, "## 3. Samplers"),
        (CREDIT, "## 4. Credit: what PCPO changes (2509.25774)\n\n"),
        (OBJECTIVES, "## 5. Objectives"),
        (ADVANTAGES, "## 6. Advantages"),
    ],
    ids=["samplers", "credit", "objectives", "advantages"],
)
def test_every_registered_name_has_its_formula_and_source(registry, heading):
    section = EQUATIONS.read_text("utf-8").split(heading.strip(), 1)[1].split("\n## ", 1)[0]
    for key, spec in registry.items():
        lines = [line for line in section.splitlines() if line.startswith(f"| `{key}`")]
        assert len(lines) == 1, key
        ids = re.findall(r"\d{4}\.\d{5}", spec.source)
        assert all(arxiv in lines[0] for arxiv in ids), f"{key}: {spec.source}"


@pytest.mark.parametrize("names", [APPLY, PENALTIES], ids=["apply", "penalties"])
def test_the_other_choices_have_a_row_too(names):
    text = EQUATIONS.read_text("utf-8")
    assert all(f"\n| `{key}` |" in text for key in names)


@pytest.mark.parametrize(
    "section, key, registry",
    [
        (config.SamplerSettings, "name", set(SAMPLERS) - {"ode"}),
        (config.CreditSettings, "schedule", set(CREDIT)),
        (config.CreditSettings, "apply", set(APPLY)),
        (config.ObjectiveSettings, "name", set(OBJECTIVES)),
        (config.AdvantageSettings, "name", set(ADVANTAGES)),
        (config.PenaltySettings, "form", {"none", *PENALTIES}),
    ],
)
def test_the_configuration_and_the_slots_table_list_what_is_registered(section, key, registry):
    choices = set(section.model_fields[key].annotation.__args__)
    assert choices == registry
    if key != "apply":
        listed = [set(re.findall(r"`(\w+)`", cells[1])) - {"ode"} for cells in rows(ARCHITECTURE, "## Slots")]
        assert choices in listed


def test_the_folder_map_is_complete():
    text = ARCHITECTURE.read_text("utf-8")
    folders = [p for p in (ROOT / "src" / "pcpo").iterdir() if p.is_dir() and not p.name.startswith("__")]
    assert all(f"`src/pcpo/{folder.name}/`" in text for folder in folders)


def test_families_and_rewards_are_listed():
    listed = {cells[0].split("`")[1] for cells in rows(DOCS / "how-to" / "own-model.md", "## Families")}
    assert listed == set(FAMILIES)
    formulas = EQUATIONS.read_text("utf-8")
    own = {key for key, spec in REWARDS.items() if spec.target.startswith("pcpo.rewards.builtin")}
    assert all(key in formulas or key.startswith("jpeg_") for key in own)


def test_what_may_differ_on_resume():
    text = (DOCS / "how-to" / "resume.md").read_text("utf-8")
    assert set(re.findall(r"^- `([\w.]+)`", text, flags=re.MULTILINE)) == EXECUTION_KEYS


@pytest.mark.parametrize("module_name", MODULES)
def test_public_names_have_docstrings(module_name):
    module = importlib.import_module(module_name)
    assert inspect.getdoc(module)
    exported = getattr(module, "__all__", None)
    names = exported if exported is not None else [n for n in vars(module) if not n.startswith("_")]
    for key in names:
        found = getattr(module, key)
        if not (inspect.isfunction(found) or inspect.isclass(found)):
            continue
        if not exported and found.__module__ != module_name:
            continue
        assert inspect.getdoc(found), f"{module_name}.{key}"
        for method, body in vars(found).items() if inspect.isclass(found) else ():
            if inspect.isfunction(body) and not method.startswith("_"):
                assert inspect.getdoc(getattr(found, method)), f"{module_name}.{key}.{method}"


def test_every_source_file_is_a_module_of_the_package():
    files = {p.relative_to(ROOT / "src") for p in (ROOT / "src" / "pcpo").rglob("*.py")}
    dotted = {str(p.with_suffix("")).replace("/", ".").removesuffix(".__init__") for p in map(Path, files)}
    assert dotted == {"pcpo", "pcpo.__main__", *MODULES}
