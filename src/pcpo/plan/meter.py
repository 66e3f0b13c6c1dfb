"""Counting what a computation allocates, without the memory: it runs on the meta device, operation by operation."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

# what CUDA's autocast computes in the low precision, and what in float32; the rest takes what it is given
LOW = {F.linear, F.conv1d, F.conv2d, F.conv3d, torch.matmul, torch.bmm, torch.baddbmm, Tensor.matmul}
FULL = {F.layer_norm, F.group_norm, F.softmax, torch.softmax, Tensor.softmax, Tensor.pow, torch.exp, torch.norm}


class AllocationMeter(TorchDispatchMode):
    """Bytes of the tensors that operations inside make.

    `now` those still alive, `peak` the most at any time, `turnover` all that were ever made. Storage that an operation
    finds as its input was there before and is not counted; views count once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.turnover = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_iter((args, kwargs)):
            if isinstance(value, Tensor):
                self._know(value, counted=False)
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self._know(value, counted=True)
        return out

    def _know(self, tensor: Tensor, counted: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = size = storage.nbytes() if counted else 0
        self.now += size
        self.turnover += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._known.pop(key)


class DeviceRules(TorchFunctionMode):
    """Lets the meta device choose as an accelerator does: fused attention, and autocast to `low` (None: off).

    Weights that autocast has cast are kept until the mode is left, as it keeps them.
    """

    def __init__(self, low: torch.dtype | None) -> None:
        super().__init__()
        self.low = low
        self._cast: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if self.low is not None and (func in LOW or func is F.scaled_dot_product_attention):
            args, kwargs = self._to(self.low, (args, kwargs))
        elif self.low is not None and func in FULL:
            args, kwargs = self._to(torch.float32, (args, kwargs))
        if func is F.scaled_dot_product_attention:
            return _fused_attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _to(self, dtype: torch.dtype, values: Any) -> Any:
        def cast(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
                return value
            if not (value.is_leaf and value.requires_grad):
                return value.to(dtype)
            if id(value) not in self._cast:
                self._cast[id(value)] = (value, value.to(dtype))  # the weight itself is kept, so that its id stays its
            return self._cast[id(value)][1]

        return tree_map(cast, values)


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention that keeps query, key, value, result and a row of sums, and never the matrix of all pairs."""
    if enable_gqa and key.shape[1] != query.shape[1]:
        repeat = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        attn_mask = attn_mask.to(query.dtype)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]


__all__ = ["AllocationMeter", "DeviceRules"]
