"""How far from the exact value sums of products in fp32 may be: on any machine, in any order, fused or not."""

from __future__ import annotations

from torch import Tensor

ROUNDOFF = 2.0**-24  # of fp32: half of what lies between 1 and the next number


def within_roundoff(actual: Tensor, exact: Tensor, size: Tensor, terms: int) -> None:
    """exact: in float64. size: the same sum over the absolute values of everything. terms: how many are added up.

    A computed sum of n products is off by at most n roundoffs of that (Higham 2002, section 3.1).
    """
    assert actual.shape == exact.shape
    off, limit = (actual.detach().double().cpu() - exact).abs(), 1.001 * terms * ROUNDOFF * size
    assert (off <= limit).all(), f"off by {(off / limit).nan_to_num().max():.2f} of what rounding may do"
