"""The runs behind curves.json: 20 iterations of tiny random pipelines, in figures that a change of code must leave.

Write the file anew, after a change that is meant to move them: python tests/golden/curves.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from training import reddish, run, settings

FILE = Path(__file__).with_name("curves.json")
FIELDS = ("reward_mean", "loss", "grad_norm", "approx_kl", "clip_fraction")
PRESET = {"sd": {"schedule": "uniform"}, "sd3": {"schedule": "proportional"}}
CHANGES = {
    "train": {"iterations": 20, "updates": 2},
    "objective": {"clip_range": 0.5},
    "optim": {"learning_rate": 3e-3, "ema_decay": 0.9},
    "evaluation": {"every": 20},
    "run": {"seed": 11},
}


def curve(family, folder, output):
    """Figures of every iteration, and of the weights after the last one."""
    from pcpo.trainer.loop import PCPOTrainer

    config = settings(family, folder, output, credit=PRESET[family], **CHANGES)
    it = PCPOTrainer(config=config, reward=reddish, quiet=True)
    log = run(it)
    norm = torch.nn.utils.get_total_norm(it.state.parameters)
    return {
        **{name: [getattr(event, name) for event in log.iterations] for name in FIELDS},
        "evaluations": [event.reward_mean for event in log.evaluations],
        "weight_norm": float(norm.detach()),
    }


def main():
    import tiny

    torch.set_num_threads(1)
    curves = {}
    with tempfile.TemporaryDirectory() as parent:
        for family, make in (("sd", tiny.stable_diffusion), ("sd3", tiny.stable_diffusion_3)):
            make().save_pretrained(Path(parent) / family)
            curves[family] = curve(family, Path(parent) / family, Path(parent) / f"run-{family}")
    FILE.write_text(json.dumps(curves, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
