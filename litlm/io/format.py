"""Numbers for people."""

from __future__ import annotations


def format_count(n: float) -> str:
    """135M, 1.24B"""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= 0.9995 * size:  # which is 1 in three digits
            return f"{n / size:.3g}{unit}"
    return f"{n:.3g}"


def format_bytes(n: float) -> str:
    """16 GB, in powers of 1000."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= 0.9995 * size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f} bytes"
