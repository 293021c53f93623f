"""Half precision against fp32: the same experts in both, and the other library's distance as the yardstick."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class Choices(TorchDispatchMode):
    """Records what the routers of a pass choose; `Choices(made)` has another pass of the same model choose the same.

    Which expert comes next is often decided by the last digits, and one that differs moves logits by more than all
    rounding does. Whose digits fall that way depends on the CPU's instructions, not on who is right.
    """

    def __init__(self, made: Choices | None = None) -> None:
        super().__init__()
        self.made: list[Tensor] = []
        self._given = None if made is None else list(made.made)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not (isinstance(args[0], Tensor) and args[0].is_floating_point() and args[0].dim() == 2):
            return out  # scores are (N, E)
        if func is aten.topk.default or (func is aten.max.dim and args[2:] == (True,)):  # which experts, which groups
            chosen = self._chosen(out[1])
            return args[0].gather(-1, chosen), chosen
        if func is aten.gt.Scalar and args[1] != 0:  # Phi-3.5-MoE leaves experts out that score far below the best
            return self._chosen(out)
        return out

    def _chosen(self, own: Tensor) -> Tensor:
        if self._given is not None:
            given = self._given.pop(0)
            assert given.shape == own.shape
            own = given
        self.made.append(own)
        return own

    def __exit__(self, exc_type: Any, *exc: Any) -> None:
        super().__exit__(exc_type, *exc)
        assert exc_type or not self._given, "this pass made fewer choices"


def as_near(ours: Tensor, theirs: Tensor, exact: Tensor) -> None:
    """Logits (..., V) of both in half precision are equally far from the exact ones, within what chance allows.

    Independent roundings add up in squares: 1.25 times theirs in the median position is room for half as many again,
    on any machine. All positions together are led by a few whose softmax is sharp, in which the same roundings weigh
    much more: 2. (A single operation that rounds more often than theirs is less than that; fp32 tests see details.)
    """
    far = [(logits.float() - exact).norm(dim=-1) for logits in (ours, theirs)]
    for name, measure, most in (("median", Tensor.median, 1.25), ("root mean square", Tensor.norm, 2.0)):
        mine, his = (measure(f).item() / measure(exact.norm(dim=-1)).item() for f in far)
        assert mine <= most * his, f"{name}: off by {mine:.2e}, theirs by {his:.2e}"
