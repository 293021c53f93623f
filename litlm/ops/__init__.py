"""Kernels and products: what is computed, apart from any module's weights."""
