"""Swap the layers of any pruned network for sparse ones."""

from mirl_sparse.sparsification.sparsify import ConversionReport, ConvertedLayer, sparsify

__all__ = ["ConversionReport", "ConvertedLayer", "sparsify"]
