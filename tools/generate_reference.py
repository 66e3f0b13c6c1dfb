"""Write docs/reference/{configuration,presets,cli}.md and the credit table of docs/explanation/equations.md.

Run it from anywhere after changing a setting, a preset, a verb or a sampler: python tools/generate_reference.py
A test fails while a written page differs from what this script would write.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo

DOCS = Path(__file__).resolve().parents[1] / "docs"
NOTE = "<!-- Written by tools/generate_reference.py; change the code, not this page. -->\n"
BLOCK = "<!-- generated: credit -->\n{}<!-- end -->"
LIMITS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def pages() -> dict[Path, str]:
    """Every generated page: path -> its whole text."""
    equations = DOCS / "explanation" / "equations.md"
    pattern = BLOCK.format(".*?").replace("\n", r"\n")
    text = equations.read_text("utf-8")
    return {
        DOCS / "reference" / "configuration.md": configuration(),
        DOCS / "reference" / "presets.md": presets(),
        DOCS / "reference" / "cli.md": cli(),
        equations: re.sub(pattern, BLOCK.format(credit_table()), text, flags=re.DOTALL),
    }


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def configuration() -> str:
    """One table per section of the configuration."""
    from pcpo.trainer.config import Config

    parts = [
        f"{NOTE}# Configuration\n",
        "Every setting, section by section. A YAML file nests them; `--set section.key=value` changes one. An\n"
        "unknown key or a combination that makes no sense is refused with the reason. `pcpo presets NAME` prints a\n"
        "preset with all of them resolved. A file may begin with `preset: NAME` to start from a preset.\n",
    ]
    parts += _sections(Config, "")
    return "\n".join(parts)


def _sections(model: type[BaseModel], path: str) -> list[str]:
    """The tables of a section and of the sections inside it."""
    rows, inner = [], []
    for name, field in model.model_fields.items():
        key = f"{path}.{name}" if path else name
        section = _section_in(field.annotation)
        if section is None or get_origin(field.annotation) is list:
            rows.append((f"`{key}`", _type(field), _default(field), field.description or ""))
        if section is not None:
            inner += _sections(section, f"{key}[]" if get_origin(field.annotation) is list else key)
    head = f"## {path or 'Top level'}\n\n{(model.__doc__ or '').splitlines()[0]}\n"
    return [head, table(("key", "type", "default", "meaning"), rows), *inner]


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, alone or as a list."""
    for part in (annotation, *get_args(annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _type(field: FieldInfo) -> str:
    limits = [f"{sign} {getattr(m, name)}" for m in field.metadata for name, sign in LIMITS.items() if hasattr(m, name)]
    return ", ".join([_type_name(field.annotation), *limits])


def _type_name(annotation: Any) -> str:
    origin, inside = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in inside)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(part) for part in inside)
    if origin is list:
        return f"list of {_type_name(inside[0])}".replace("of text", "of texts")
    if origin is tuple:
        return f"{len(inside)} of {_type_name(inside[0])}"
    if origin is dict:
        return "mapping"
    return {
        "RewardPart": "names and mappings",
        "str": "text",
        "int": "integer",
        "float": "number",
        "bool": "true or false",
    }.get(annotation.__name__, annotation.__name__)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, list) and value and isinstance(value[0], BaseModel):
        value = [part.model_dump(exclude_defaults=True) for part in value]
    named = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return f"`{named[value]}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def presets() -> str:
    """All presets: what each is, and its choice in every slot."""
    from pcpo.trainer.configfile import load_config, preset_names

    rows = []
    for name in preset_names():
        text = (resources.files("pcpo") / "presets" / f"{name}.yaml").read_text("utf-8")
        config = load_config(name)
        credit = config.credit.schedule
        rows.append(
            (
                f"[`{name}`](../../src/pcpo/presets/{name}.yaml)",
                text.splitlines()[0].removeprefix("# "),
                f"`{config.model.path}`, {config.model.tune}",
                f"{config.sampler.name}, {config.sampler.steps}",
                credit if credit == "native" else f"{credit} by {config.credit.apply}",
                config.objective.name,
                config.advantage.name,
                "none" if config.kl.form == "none" else f"{config.kl.form} {config.kl.beta:g}",
            )
        )
    head = ("preset", "what it is", "model", "sampler, steps", "credit", "objective", "advantage", "KL")
    about = (
        "A preset is a short table of choices, one per slot ([equations](../explanation/equations.md) defines each).\n"
        "`pcpo train NAME` runs one and `pcpo presets NAME` prints it in full. A preset whose pipeline family has no\n"
        "adapter in this version (`pcpo models` lists the families) is refused before any weight is loaded.\n"
    )
    return f"{NOTE}# Presets\n\n{about}\n{table(head, rows)}"


def cli() -> str:
    """Every verb of the command line with its arguments and options."""
    from pcpo.cli.main import app

    parts = [
        f"{NOTE}# Command line\n",
        "`pcpo VERB --help` shows the same. Errors that you can mend are one line on stderr, with an exit code of\n"
        "their own (below).\n",
    ]
    for name, verb in _verbs(app, "pcpo"):
        parts.append(f"## {name}\n\n{inspect.getdoc(verb)}\n")
        rows = list(_parameters(verb))
        parts += [table(("parameter", "type", "default", "meaning"), rows)] if rows else []
    parts += ["## Exit codes\n", table(("code", "error", "raised for"), _exit_codes())]
    return "\n".join(parts)


def _verbs(app: Any, prefix: str) -> Iterable[tuple[str, Any]]:
    """Full name and function of every command, those of groups below the group's own."""
    for command in app.registered_commands:
        yield f"{prefix} {command.name}", command.callback
    for group in app.registered_groups:
        name, inner = f"{prefix} {group.name}", group.typer_instance
        yield name, inner.registered_callback.callback
        yield from _verbs(inner, name)


def _parameters(verb: Any) -> Iterable[tuple[str, str, str, str]]:
    hints = get_type_hints(verb, include_extras=True)
    for name, parameter in inspect.signature(verb).parameters.items():
        if not hasattr(hints[name], "__metadata__"):  # typer's own context
            continue
        annotation, info = hints[name].__args__[0], hints[name].__metadata__[0]
        bare = next(part for part in get_args(annotation) or (annotation,) if part is not type(None))
        bare = (get_args(bare) or (bare,))[0]
        is_option = type(info).__name__ == "OptionInfo"
        # inside Annotated, typer keeps the first of several names as the default
        names = [n for n in (info.default, *(info.param_decls or ())) if isinstance(n, str)]
        names = names or [f"--{name.replace('_', '-')}"]
        shown = ", ".join(f"`{part}`" for part in names) if is_option else f"`{name.upper()}`"
        limits = [f"{LIMITS[key]} {limit}" for key, limit in (("ge", info.min), ("le", info.max)) if limit is not None]
        default = parameter.default
        if isinstance(info.show_default, str):
            value = info.show_default
        elif default is inspect.Parameter.empty:
            value = "required"
        else:
            value = "" if default is None or default is False else f"`{default}`"
        kind = "flag" if bare is bool else info.metavar or _type_name(bare)
        yield shown, ", ".join([kind.replace("Path", "path"), *limits]), value, info.help or ""


def _exit_codes() -> Iterable[tuple[str, str, str]]:
    from pcpo.errors import Interrupted, PCPOError

    yield "0", "", "success"
    errors: list[type[PCPOError]] = [PCPOError, *PCPOError.__subclasses__()]
    for error in errors:
        yield str(error.exit_code), f"`{error.__name__}`", (error.__doc__ or "").splitlines()[0]
    yield "130, 143", f"`{Interrupted.__name__}`", (Interrupted.__doc__ or "").splitlines()[0]


def credit_table() -> str:
    """Native credit of the reference settings, from the samplers' coefficients."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    from pcpo.credit.diagnostics import spread
    from pcpo.credit.schedules import native, proportional
    from pcpo.samplers import make_sampler
    from pcpo.samplers.grids import ddim_grid, flow_grid, flow_grid_from_scheduler

    sd3 = flow_grid_from_scheduler(FlowMatchEulerDiscreteScheduler(shift=3.0), 10)
    flow, dance = make_sampler("flow_sde", noise_level=0.7), make_sampler("dance_sde", eta=0.3)
    flow_grids = flow.stats(flow_grid(10, 3.0)), flow.stats(sd3)
    diffusion = [
        ("ddim, eta 1, 50 steps of SD1.5", make_sampler("ddim", eta=1.0).stats(ddim_grid(50))),
        (
            "the same with variance pcpo, w* = 4.5",
            make_sampler("ddim", variance="pcpo", target=4.5).stats(ddim_grid(50)),
        ),
    ]
    flows = [
        ("flow_sde, a 0.7, 10 steps, ideal grid, shift 3", flow_grids[0]),
        ("the same grid, first 9 steps", flow_grids[0][:9]),
        ("flow_sde, a 0.7, 10 steps of SD3's scheduler", flow_grids[1]),
        ("the same grid, first 9 steps", flow_grids[1][:9]),
        ("dance_sde, eta 0.3, 16 steps, ideal grid, shift 3", dance.stats(flow_grid(16, 3.0))),
    ]
    rows = []
    for place, (name, stats) in enumerate([*diffusion, *flows]):
        w = native(stats)
        zeta = float(proportional(stats)[0] / stats.dt[0])
        target = (f"{float(w.mean()):.4f}", "") if place < len(diffusion) else ("", f"{zeta:.10g}")
        own = f"{spread(w[~stats.borrowed]):.3g} : 1" if stats.borrowed.any() else ""
        rows.append((name, f"{float(w.min()):.4g} to {float(w.max()):.4g}", f"{spread(w):.3g} : 1", own, *target))
    head = (
        "setting",
        "w = k / s",
        "max : min",
        "without the borrowed step",
        "uniform: mean of w",
        "proportional: zeta",
    )
    return table(head, rows)


def main() -> None:
    """Write every page."""
    for path, text in pages().items():
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
