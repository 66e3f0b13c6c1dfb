"""Write docs/results/performance.md and its figure from the committed results.

    python benchmarks/page.py

Only what has been measured is shown: a file that is not there leaves its section out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from timing import RESULTS

PAGE = Path(__file__).parents[1] / "docs/results/performance.md"
FIGURE = PAGE.with_suffix(".png")
NOTE = "<!-- Written by benchmarks/page.py from benchmarks/results/*.json; run that, do not change this page. -->\n"
Results = dict[str, Any]

# Means, verdict, and what was measured: a variant in means.json, a file of its own, or words.
VARIANTS = ("compile", "folded LoRA", "bf16", "channels_last", "fused AdamW")
OWN = ("savers", "solvers")
PAYS = 1.05  # a ratio that is not taken for noise
MEANS = [
    (
        "prompt embeddings cached, in memory or on disk",
        "kept, always on",
        "encoding is left out after a prompt's first",
    ),
    ("both halves of guidance in one call", "kept, always on", "part of the ratio to the reference loop"),
    ("micro-batches over pictures x steps", "kept, `batch.micro`", "part of the ratio to the reference loop"),
    (
        "old prediction from the rollout, no pass of its own",
        "kept, always on",
        "part of the ratio to the reference loop",
    ),
    ("reference skipped when no penalty asks for it", "kept, always on", "one model call per pair less"),
    ("trajectory of the trained steps only", "kept, always on", "see memory"),
    ("old prediction computed again", "kept, `train.replay`", "a third of the trajectory less, the same bits"),
    ("deterministic steps outside the window", "kept, `sampler.stochastic`", "no noise to draw or store"),
    (
        "trained steps drawn in proportion to their credit",
        "kept, `train.select=credit`",
        "unbiased by a law test; half the steps is half the update",
    ),
    (
        "LoRA folded into its weights: one product a layer",
        "kept, `model.lora.fold`, on in fp32: rollout and updates only, evaluation and export are peft's bit for bit",
        "folded LoRA",
    ),
    ("torch.compile, by blocks where diffusers can", "kept, `run.compile`", "compile"),
    ("bf16 computation, float32 latents", "kept, `run.precision`", "bf16"),
    ("channels_last", "dropped: not told from the noise but for decoding, 2 % of an iteration", "channels_last"),
    ("fused AdamW", "dropped: a LoRA's step is 0.1 % of an iteration", "fused AdamW"),
    (
        "reward and decoding beside the next rollout",
        "dropped: 2 % for built-in rewards; for slow ones more requests at a time give the same",
        "computed from the phases of 64 pictures, calls of 8, on emoji-sd, scored beside the next call: "
        "1 % for 200 ms a request of 16 with 2 in flight; 9 % for 200 ms a picture with 8 in flight, 1 % with 32; "
        "16 % for 50 ms a picture one by one on a core of its own, 5 % on four reward servers",
    ),
    (
        "gradient checkpointing where memory runs out",
        "kept as the last resort, `model.gradient_checkpointing=auto`: halved calls come first, for two halvings cost "
        "less time and hold less",
        "savers",
    ),
    (
        "deterministic steps of second order outside the window",
        "dropped: with a window at the 10 steps of the presets the error falls by 1 to 22 % (diffusion) or grows by 3 "
        "to 11 % (flow); it would pay from 20 steps on, and on a grid uniform in log SNR",
        "solvers",
    ),
    (
        "trajectory in pinned host memory",
        "not tried: it needs an accelerator, and no machine that measured this page has one",
        "a trajectory is small beside the activations of one call, see memory",
    ),
]


def load(name: str) -> Results | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def spread(found: dict[str, float], middle: str = "ratio") -> str:
    return f"{found[middle]:.2f} ({found['min']:.2f} to {found['max']:.2f})"


def machine(results: Results) -> str:
    """One line on how a file was measured."""
    env, load_average = results["environment"], results["load_average"]
    versions = ", ".join(f"{name} {env[name]}" for name in ("torch", "diffusers", "transformers") if env.get(name))
    threads = f"{results['threads']} thread, " if "threads" in results else ""
    busy = " The machine was busy: read processor times." if load_average > 1.5 else ""
    return f"{env.get('cpu', 'CPU')}, {threads}{versions}; load average {load_average:.1f} at the start.{busy}\n"


def reference(found: Results) -> str:
    rows = [
        [model, size, f"{row['pictures']} x {row['steps']}", spread(row["cpu"]), spread(row["wall"])]
        for model, sizes in found["models"].items()
        for size, row in sizes.items()
    ]
    return (
        "## Beside a straightforward loop\n\n"
        "How many times faster an iteration is than one written as the published scripts write it\n"
        "(`benchmarks/loops.py`: prompts encoded per rollout, a call for each half of guidance, a pass for old\n"
        "log-probabilities, an update step by step, peft's LoRA layers as they are), at equal settings and with the\n"
        f"same gradient. Target: {found['target']}.{calls_alone(load('means'))}\n\n"
        + table(["model", "size", "pictures x steps", "processor time", "wall time"], rows)
        + f"\n{machine(found)}"
    )


def calls_alone(found: Results | None) -> str:
    """What fewer model calls give: (2 f + u) / (f + u) of a forward pass f and a pass with backward u."""
    models = []
    for model, variants in (found or {"models": {}})["models"].items():
        f, u = (variants["plain"][part]["cpu"]["median"] for part in ("forward", "forward and backward"))
        models.append(f"{(2 * f + u) / (f + u):.2f} for {model}")
    if not models:
        return ""
    return (
        " By the times of calls below, the pass for old log-probabilities that is left out\ngives "
        f"{', '.join(models)}; "
        "the rest is the folded LoRA, both halves of guidance in one call,\nand calls that are filled."
    )


def overhead(found: Results) -> str:
    rows = [
        [
            model,
            spread(row["cpu"]),
            spread(row["wall"]),
            ", ".join(f"{mib:.0f}" for mib in row["peak_rss_mib"].values()),
        ]
        for model, row in found["models"].items()
    ]
    return (
        "## Over the bare model calls\n\nAn iteration over the model calls that it cannot avoid. "
        f"Target: at most {found['target']}.\n\n"
        + table(["model", "processor time", "wall time", "peak memory of both, MiB"], rows)
        + f"\n{machine(found)}"
    )


def throughput(found: Results) -> str:
    rows = [
        [model, str(row["pictures"]), str(row["steps"])]
        + [spread(row["wall"][f"{what}_per_second"], "median") for what in ("pictures", "iterations")]
        for model, cases in found["models"].items()
        for row in cases
    ]
    head = ["model", "pictures", "steps", "pictures/s", "iterations/s"]
    return f"## Throughput of training\n\n{table(head, rows)}\n{machine(found)}"


def scaling(found: Results) -> str:
    rows = [
        [model, axis, ", ".join(map(str, row["values"])), f"{row['linearity']:.1%}", f"{row['model_linearity']:.1%}"]
        + [f"{row['beyond_model']:.1%}"]
        for model, axes in found["models"].items()
        for axis, row in axes.items()
    ]
    head = ["model", "axis", "values", "off a line", "the bare model's own", "beyond the model"]
    return (
        f"## Cost along pictures, steps and pixels\n\nTarget: {found['target']:.0%} off a line at most.\n\n"
        f"{table(head, rows)}\n{machine(found)}"
    )


def memory(found: Results) -> str:
    parts = ("rollout", "decode", "update", "trajectory")
    rows = [
        [model, str(row["pictures"]), *(f"{row[part]:.1f}" for part in parts)]
        for model, cases in found["models"].items()
        for row in cases
    ]
    return (
        "## Memory by part\n\nPeaks in MiB over the loaded model, calls of four pictures whatever their number; the\n"
        "trajectory is what grows by design (three float32 tensors of the latent's size for every trained step,\n"
        f"two with `train.replay`).\n\n{table(['model', 'pictures', *parts], rows)}\n{machine(found)}"
    )


def startup(found: Results) -> str:
    rows = [
        [f"`{name}`" if name.startswith(("pcpo", "import pcpo")) else name]
        + [f"{row[clock]['median']:.2f} s" for clock in ("cpu", "wall")]
        + [f"{found['targets'][name]} s" if name in found["targets"] else ""]
        for name, row in found["commands"].items()
    ]
    head = ["command", "processor time", "wall time", "target"]
    return f"## Start-up\n\n{table(head, rows)}\n{machine(found)}"


def savers(sides: Results) -> str:
    parts = {kind: {n: s for n, s in sides.items() if ("checkpointing" in n) == kind} for kind in (False, True)}
    texts = [
        f"calls of {', '.join(name.split()[0] for name in found)} pairs{' with checkpointing' * kind} take "
        f"{', '.join(format(side['slower']['ratio'], '.2f') for side in found.values())} of the time and hold "
        f"{', '.join(format(side['mib'], '.0f') for side in found.values())} MiB"
        for kind, found in parts.items()
    ]
    return "; ".join(texts)


def solvers(rows: Sequence[Results]) -> str:
    def window(steps: Sequence[int]) -> str:
        return f"steps {steps[0]} to {steps[-1]} stochastic" if steps else "none stochastic"

    return "; ".join(
        f"{row['steps']} steps{' uniform in log SNR' * (row['grid'] == 'log_snr')}, {window(row['window'])}: error "
        f"{row['first']:.3f} to {row['second']:.3f}"
        for row in rows
    )


def means(found: Results | None) -> str:
    rows = []
    for title, verdict, note in MEANS:
        own = load(note) if note in OWN else None
        for model, measured in (own or {"models": {}})["models"].items():
            rows.append([title, verdict, f"{model}: {(savers if note == 'savers' else solvers)(measured)}"])
            title = verdict = ""
        for model, variants in (found or {"models": {}})["models"].items():
            if note in variants:
                parts = ["forward", "forward and backward", "optimiser" if note == "fused AdamW" else "decode"]
                numbers = "; ".join(f"{part} {spread(variants[note][part]['faster'])}" for part in parts)
                rows.append([title, verdict, f"{model}: {numbers}"])
                title = verdict = ""
        if title:
            rows.append([title, verdict, "not measured yet" if note in (*VARIANTS, *OWN) else note])
        if note == "bf16":
            rows += [["", "", line] for line in bf16_by_size((found or {}).get("bf16 by size", {}))]
    text = (
        "## What was tried\n\nRatios are the plain time over the variant's: above 1 is faster. The forward and\n"
        "backward passes of the fused AdamW variant are those of the plain one: how far its ratios are from 1 is\n"
        "the noise. Errors of the second order are relative distances of final latents to those of fine deterministic\n"
        "steps, from the first order's to the second's.\n\n"
    )
    return text + table(["means", "verdict", "measured"], rows) + (f"\n{machine(found)}" if found else "")


def bf16_by_size(models: Results) -> list[str]:
    """One line a model: its ratios by pictures a call, and from how many on bf16 pays."""
    lines = []
    for model, sizes in models.items():
        texts = []
        for part in ("forward", "forward and backward"):
            ratios = [sizes[size][part]["ratio"] for size in sizes]
            first = next((n for n in range(len(ratios)) if min(ratios[n:]) >= PAYS), None)
            verdict = "does not pay" if first is None else f"pays from {list(sizes)[first]} pictures a call on"
            texts.append(f"{part} {', '.join(f'{ratio:.2f}' for ratio in ratios)}: {verdict}")
        lines.append(f"{model}, {', '.join(sizes)} pictures a call: {'; '.join(texts)}")
    return lines


def figure(found: Results) -> None:
    """Ratios to the reference loop with their spread."""
    from matplotlib.figure import Figure

    names, rows = [], []
    for model, sizes in found["models"].items():
        for row in sizes.values():
            names.append(f"{model}\n{row['pictures']} pictures")
            rows.append(row["cpu"])
    drawn = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = drawn.subplots()
    ratios = [row["ratio"] for row in rows]
    errors = [[r["ratio"] - r["min"] for r in rows], [r["max"] - r["ratio"] for r in rows]]
    axes.bar(
        names, ratios, yerr=[[max(0.0, e) for e in side] for side in errors], color="#4878a8", capsize=4, width=0.6
    )
    axes.axhline(1, color="#888888", linewidth=1)
    axes.axhline(found["target"], color="#b04a3a", linewidth=1, linestyle="--", label=f"target {found['target']}")
    axes.set_ylabel("times faster than the loop")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    drawn.savefig(FIGURE, dpi=150)


def page() -> str:
    """The whole text."""
    parts = [
        f"{NOTE}# Performance\n",
        "Measured on the embedded models by `make bench`. Ratios are of medians, with the least and greatest of a\n"
        "turn; both sides of a ratio ran in turn, in one process.\n",
    ]
    if load("reference"):
        parts.append(f"![Iterations beside the reference loop]({FIGURE.name})\n")
    for name, write in SECTIONS.items():
        found = load(name)
        if found is not None:
            parts.append(write(found))
    parts.append(means(load("means")))
    return "\n".join(parts)


SECTIONS = {
    "reference": reference,
    "overhead": overhead,
    "throughput": throughput,
    "scaling": scaling,
    "memory": memory,
    "startup": startup,
}


def main() -> None:
    found = load("reference")
    if found:
        figure(found)
    PAGE.write_text(page(), "utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
