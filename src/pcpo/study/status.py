"""How far a study is, in words."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from pcpo.observe.console import duration
from pcpo.study import claims
from pcpo.study.plan import Cell
from pcpo.study.progress import iterations_logged
from pcpo.study.runner import open_study, read_failure, state

STATES = ("done", "running", "started", "failed", "waiting")


def describe(output: Path) -> str:
    """Counts, a row per model, reward and arm, then one line for each cell that runs or failed."""
    study, cells = open_study(output)
    states = {cell.name: state(cell, output) for cell in cells}
    count = Counter(states.values())
    parts = [f"{count[name]} {name}" for name in STATES if count[name]]
    lines = [f"{study.name}: {len(cells)} cells: {', '.join(parts)}"]
    groups: dict[tuple[str, str, str], list[str]] = {}
    for cell in cells:
        groups.setdefault((cell.model, cell.reward, cell.arm), []).append(states[cell.name])
    widths = [max(len(key[n]) for key in groups) for n in range(3)]
    for key, found in groups.items():
        name = "  ".join(part.ljust(width) for part, width in zip(key, widths, strict=True))
        lines.append(f"  {name}  {found.count('done')}/{len(found)} seeds")
    lines += [_running(cell, output) for cell in cells if states[cell.name] == "running"]
    for cell in cells:
        if states[cell.name] == "failed":
            record = read_failure(cell, output)
            lines.append(f"failed   {cell.name}: {record.get('kind', '')}: {record.get('error', '')}")
    return "\n".join(lines)


def _running(cell: Cell, output: Path) -> str:
    record = claims.owner(output / "claims", cell.name) or {}
    claimed = record.get("claimed")
    since = duration(time.time() - claimed) if isinstance(claimed, float) else "an unknown time"
    done = f"{iterations_logged(cell)}/{cell.config.train.iterations} iterations"
    return f"running  {cell.name}: {done}, shard {record.get('shard', '')}, for {since}"
