"""Whether pictures fit their prompts, by a dual encoder: alignment, retrieval, and the inception score's analogue."""

from __future__ import annotations

import torch
from torch import Tensor


def alignment(similarity: Tensor, own: Tensor) -> float:
    """Mean cosine of a picture and its own caption; similarity [B, K], own [B] the caption's column."""
    return float(similarity.gather(1, own.unsqueeze(1)).mean())


def retrieval(similarity: Tensor, own: Tensor) -> float:
    """Share of pictures whose own caption is the nearest of all K."""
    return float((similarity.argmax(1) == own).double().mean())


def class_probabilities(similarity: Tensor, logit_scale: float) -> Tensor:
    """Zero-shot class probabilities [B, K] float64: softmax of the scaled cosines (2103.00020)."""
    return (logit_scale * similarity.double()).softmax(dim=1)


def inception_score(probabilities: Tensor) -> float:
    """exp of the mean KL of a picture's class probabilities to their average (1606.03498), from 1 to K.

    probabilities [B, K], rows that sum to 1. There the classes are ImageNet's by Inception; here they are captions
    by a dual encoder (`class_probabilities`). High: pictures are recognisable, and of many captions.
    """
    p = probabilities.double()
    marginal = p.mean(0)
    kl = torch.special.entr(marginal).sum() - torch.special.entr(p).sum(1).mean()
    return float(kl.exp())


__all__ = ["alignment", "class_probabilities", "inception_score", "retrieval"]
