"""Noise as a function of what it is for: it does not depend on batch size, order, rank or device."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

INITIAL = -1


def latent_noise(
    seed: int, prompt: str, sample: int, step: int, shape: Sequence[int], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal noise [*shape] on the CPU for one picture and step; step -1 is the initial noise.

    A pure function of its arguments: a hash of (seed, prompt, sample, step) seeds a generator of its own. The
    same `sample` and INITIAL for all pictures of a group share their initial noise.
    """
    key = f"{seed}/{sample}/{step}/".encode() + prompt.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(key, digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(tuple(shape), generator=generator, dtype=dtype)


def noise_batch(
    seed: int,
    prompts: Sequence[str],
    samples: Sequence[int],
    step: int,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`latent_noise` of B pictures, [B, *shape]; prompts and samples have length B."""
    rows = [latent_noise(seed, p, int(s), step, shape, dtype) for p, s in zip(prompts, samples, strict=True)]
    return torch.stack(rows)
