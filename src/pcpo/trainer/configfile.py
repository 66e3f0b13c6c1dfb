"""Read, override, check and write configurations: presets, YAML files, `--set a.b=c`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pcpo.errors import ConfigError
from pcpo.trainer.config import Config

MAX_BYTES = 1 << 20
MEMORY_FAMILY = "memory_family"  # in a preset: the file of memory presets that go with it


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader without aliases (no entity bombs), that refuses a key given twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.YAMLError(f"key {key!r} is not text")
            if key in seen:
                raise yaml.YAMLError(f"key {key!r} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes the texts which `_StrictLoader` would read as numbers."""


# YAML 1.1 reads 1e-4 as text; read it as the number that everyone means.
for _class in (_StrictLoader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    folder = resources.files("pcpo") / "presets"
    return sorted(entry.name[: -len(".yaml")] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """A mapping from YAML text. Raises ConfigError for anything else."""
    try:
        data = _StrictLoader(text).get_single_data()
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"not valid YAML: {' '.join(str(error).split())}", where=where) from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"expected settings by name, got {type(data).__name__}", where=where)
    return data


def read_source(source: str | Path, memory_preset: str | None = None) -> dict[str, Any]:
    """The raw settings of a preset name or a YAML file, with those of a memory preset laid on them.

    A file may say `preset: NAME` to start from a preset, and `memory_preset: NAME` to lay one on that before its own
    settings. Raises ConfigError, naming the nearest preset.
    """
    data = _read(source)
    if memory_preset is not None:
        data = _with_memory_preset(data, memory_preset, f"memory preset {memory_preset}")
    data.pop(MEMORY_FAMILY, None)
    return data


def memory_presets(family: str) -> dict[str, Any]:
    """Memory presets of a model: name, such as 16gb -> the settings that make it fit, or a text why none do."""
    return parse_yaml((resources.files("pcpo") / "presets/memory" / f"{family}.yaml").read_text("utf-8"), family)


def memory_family(source: str | Path) -> str | None:
    """The model whose memory presets go with a preset or file; None where there are none."""
    return _read(source).get(MEMORY_FAMILY)


def _with_memory_preset(data: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    family = data.get(MEMORY_FAMILY)
    if family is None:
        having = [preset for preset in preset_names() if memory_family(preset)]
        raise ConfigError("goes with a preset of a large model", where=where, fix=f"one of {', '.join(having)}")
    known = memory_presets(family)
    if name not in known:
        raise ConfigError(
            f"{data.get('name', family)} has none of this name", where=where, fix=f"use one of: {', '.join(known)}"
        )
    if not isinstance(known[name], dict):
        possible = [size for size, settings in known.items() if isinstance(settings, dict)]
        raise ConfigError(f"does not fit: {known[name]}", where=where, fix=f"there is {', '.join(possible)}")
    return merge(data, known[name])


def _read(source: str | Path) -> dict[str, Any]:
    names = preset_names()
    if str(source) in names:
        text = (resources.files("pcpo") / "presets" / f"{source}.yaml").read_text("utf-8")
        return _with_base(parse_yaml(text, f"preset {source}"), f"preset {source}")
    path = Path(source)
    if not path.is_file():
        if path.suffix in (".yaml", ".yml"):
            raise ConfigError("no such file", where=str(path))
        raise ConfigError(
            f"no preset of this name{_nearest(str(source), names)}",
            where=str(source),
            fix="pcpo presets lists them",
        )
    return _with_base(read_yaml(path), str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError: not there, too large, not UTF-8, or not a mapping."""
    if not path.is_file():
        raise ConfigError("no such file", where=str(path))
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"larger than {MAX_BYTES} bytes", where=str(path))
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        raise ConfigError("not UTF-8 text", where=str(path)) from None
    return parse_yaml(text, str(path))


def _with_base(data: dict[str, Any], where: str) -> dict[str, Any]:
    base, memory_preset = data.pop("preset", None), data.pop("memory_preset", None)
    if base is None:
        if memory_preset is not None:
            raise ConfigError("memory_preset needs a preset to be laid on", where=where, fix="add preset: NAME")
        return data
    if not isinstance(base, str) or base not in preset_names():
        raise ConfigError(f"preset: {base!r} is not a preset{_nearest(str(base), preset_names())}", where=where)
    below = _read(base)
    if memory_preset is not None:
        below = _with_memory_preset(below, str(memory_preset), where)
    return merge(below, data)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`: mappings merge key by key, anything else replaces."""
    out = dict(base)
    for key, value in over.items():
        inner = out.get(key)
        out[key] = merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return out


def apply_overrides(data: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Lay `a.b=c` assignments on raw settings; the value is read as YAML."""
    for assignment in assignments:
        key, sep, text = assignment.partition("=")
        if not sep or not key:
            raise ConfigError("expected KEY=VALUE", where=f"--set {assignment}", fix="--set optim.learning_rate=1e-4")
        *path, last = key.split(".")
        nested = {last: parse_yaml(f"value: {text}", f"--set {assignment}").get("value")}
        for part in reversed(path):
            nested = {part: nested}
        data = merge(data, nested)
    return data


def validate(data: dict[str, Any], where: str = "config") -> Config:
    """A checked Config from raw settings. Raises ConfigError with one line that names the key and the remedy."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(explain(error), where=where) from None


def load_config(source: str | Path, overrides: Sequence[str] = (), memory_preset: str | None = None) -> Config:
    """The Config of a preset or file, with a memory preset and then `--set` overrides laid on it."""
    return validate(apply_overrides(read_source(source, memory_preset), overrides), str(source))


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML; `load_config` reads it back equal."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, width=110)


def describe(config: Config) -> str:
    """The resolved configuration as YAML with every field's meaning as a comment."""
    lines: list[str] = []
    _describe(config, 0, lines)
    return "\n".join(lines) + "\n"


def _describe(section: BaseModel, depth: int, lines: list[str]) -> None:
    for name, field in type(section).model_fields.items():
        value, indent = getattr(section, name), "  " * depth
        if isinstance(value, BaseModel):
            lines.append(f"{indent}{name}:  # {(type(value).__doc__ or '').splitlines()[0]}")
            _describe(value, depth + 1, lines)
            continue
        plain = section.model_dump(mode="json", include={name})[name]
        text = yaml.dump(plain, Dumper=_Dumper, default_flow_style=True, width=1 << 20).removesuffix("...\n").strip()
        lines.append(f"{indent}{name}: {text}" + (f"  # {field.description}" if field.description else ""))


def explain(error: ValidationError, model: type[BaseModel] = Config) -> str:
    """The first problem of a refused `model` in one line; a misspelt key gets the nearest one."""
    # a misspelt key comes first: it may be why another one is missing
    first, *rest = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    loc = ".".join(_shown(str(part)) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        text = f"unknown key {loc}{_nearest(str(first['loc'][-1]), _fields_at(model, first['loc'][:-1]))}"
    elif loc:
        text = f"{loc}: {first['msg'].removeprefix('Value error, ')}, got {str(first['input'])[:80]!r}"
    else:
        text = first["msg"].removeprefix("Value error, ")
    return f"{text} (and {len(rest)} more)" if rest else text


def _shown(key: str) -> str:
    """A key as one short line, whatever characters it has."""
    return key[:80] if key.isprintable() else repr(key[:80])


def _fields_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Field names of the section at a location below `model`."""
    for part in loc:
        if part not in model.model_fields:  # an index in a list, or a name in a mapping of sections
            continue
        annotation: Any = model.model_fields[str(part)].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        found = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not found:
            return []
        model = found[0]
    return list(model.model_fields)


def _nearest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else (f"; known: {', '.join(names)}" if names else "")
