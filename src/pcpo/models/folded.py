"""A LoRA layer as one matrix product, for training in the dtype of its base weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class FoldedLinear(torch.autograd.Function):
    """y = x (W + s B A)^T + b for x [..., in], W [out, in], b [out] or None, A [r, in], B [out, r]; W and b frozen.

    LoRA (2106.09685) adds s B A x to W x. Added to W first, no product, scaling or sum of the size of y is left. The
    gradients are dx = dy (W + s B A), dA = s (dy B)^T x, dB = s dy^T (x A^T). Of what is made here only x is kept for
    them; W + s B A is made again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """y [..., out]."""
        ctx.save_for_backward(x, weight, a, b)
        ctx.scale = scale
        return F.linear(x, torch.addmm(weight, b, a, alpha=scale), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        """Gradients of x, A and B."""
        x, weight, a, b = ctx.saved_tensors
        rows, inputs = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (rows @ torch.addmm(weight, b, a, alpha=ctx.scale)).view(x.shape)
        da = ((rows @ b).T @ inputs).mul_(ctx.scale)
        db = (rows.T @ (inputs @ a.T)).mul_(ctx.scale)
        return dx, None, None, da, db, None


@contextlib.contextmanager
def folded(module: nn.Module) -> Iterator[None]:
    """Inside, the LoRA layers of `module` that can be are computed by `FoldedLinear`; outside, by peft as before.

    They are plain linear layers with one LoRA, without dropout, all of one dtype: added to bf16 weights, small changes
    would be lost. The numbers differ from peft's by rounding.
    """
    layers = [layer for layer in module.modules() if _foldable(layer)]
    for layer in layers:
        layer.forward = partial(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _foldable(layer: Any) -> bool:
    from peft.tuners.lora import Linear

    if type(layer) is not Linear or type(layer.base_layer) is not nn.Linear or "forward" in vars(layer):
        return False
    names = layer.active_adapters
    if len(names) != 1 or names[0] not in layer.lora_A:
        return False
    name, base = names[0], layer.base_layer.weight
    more = layer.merged or layer.lora_variant or layer.lora_bias[name] or base.requires_grad
    plain = not more and isinstance(layer.lora_dropout[name], nn.Identity)
    return plain and base.dtype == layer.lora_A[name].weight.dtype == layer.lora_B[name].weight.dtype


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if layer.disable_adapters or args or kwargs:
        return type(layer).forward(layer, x, *args, **kwargs)
    name, base = layer.active_adapters[0], layer.base_layer
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    return FoldedLinear.apply(x, base.weight, base.bias, a, b, layer.scaling[name])


__all__ = ["FoldedLinear", "folded"]
