"""Count what the kernels do, in the units that the cost model has prices for."""

from __future__ import annotations

from collections import Counter
from enum import Enum

from torch import Tensor

from mirl_kernels.core.cpu.library import LANES, isa, kernel_rule
from mirl_kernels.core.cpu.packed_matrix import PANEL, PackedMatrix

_CACHED_FLOATS = 1 << 20  # 4 MB: what stays in a cache between two layers


class Quantity(str, Enum):
    """Name a unit of work that has a price, in seconds, on each machine.

    Members are strings, so that prices are stored as JSON under them: their values must not change. Where the
    table says "vector", the unit is counted once for each vector of pixels.

    Attributes:
        CALL: A call of a kernel.
        FAR_FLOAT: A float of an image that is read or written and does not stay in a cache between two
            layers.
        ROW: A row of a packed matrix, for a vector.
        ROW_OF_GROUP: A row of a packed matrix, for a group of vectors.
        DENSE: A value of a matrix that is kept whole, times a vector.
        ENTRY: An entry of a sparse row, times a vector.
        ENTRY_OF_GROUP: An entry of a sparse row, read for a group of vectors.
        FAR_ENTRY: The same, if the entries of the matrix do not stay in a cache.
        NORM: A channel of a layer norm, for a vector.
        TAP: A depthwise tap inside a fused block, times a vector.
        GRAM: A product of a q and a k channel, for a vector.
        LIVE_QK: A q or k channel that is computed, for a vector.
        LIVE_V: A v channel that is computed, written and read, for a vector.
        SOFTMAX: A value of an attention matrix.
        SCORE: A query and a key of a window, for a vector of queries.
        GATE: A pair of channels that are multiplied, for a vector.
        LOAD: A channel read into a convolution's ring of rows, for a vector.
        GATHER: A column of a convolution's matrix read from the ring, for a vector.
        STORE: A channel written, for a vector.
        COPY: A channel that a depthwise convolution copies, for a vector.
        DEPTHWISE_TAP: A tap of a depthwise convolution, or of another one that reads its ring, times a
            vector.
        DEPTHWISE_TAP_OF_GROUP: The same, read for a group of vectors.
        TRANSPOSED: A channel of tokens that is transposed, for a vector of tokens.
        MEAN: A channel whose mean a prompt block takes, for a vector.
        RESIZE: A prompt channel that is interpolated, for a vector.
        MIX: A value of a prompt that is added to the mixture.
    """

    CALL = "call"
    FAR_FLOAT = "far float"
    ROW = "row"
    ROW_OF_GROUP = "row of a group"
    DENSE = "dense"
    ENTRY = "entry"
    ENTRY_OF_GROUP = "entry of a group"
    FAR_ENTRY = "far entry"
    NORM = "norm"
    TAP = "tap"
    GRAM = "gram"
    LIVE_QK = "live qk"
    LIVE_V = "live v"
    SOFTMAX = "softmax"
    SCORE = "score"
    GATE = "gate"
    LOAD = "load"
    GATHER = "gather"
    STORE = "store"
    COPY = "copy"
    DEPTHWISE_TAP = "depthwise tap"
    DEPTHWISE_TAP_OF_GROUP = "depthwise tap of a group"
    TRANSPOSED = "turn"
    MEAN = "mean"
    RESIZE = "resize"
    MIX = "mix"


def pixel_groups(rows: int, columns: int) -> tuple[int, int]:
    """Return how the kernels divide the pixels of an image.

    Args:
        rows: Rows of the image. Short rows share a group.
        columns: Pixels of a row.

    Returns:
        The number of vectors of pixels, and the number of groups of vectors that the kernels work on at a
        time.
    """
    lanes = LANES[isa()]
    vectors = -(-columns // lanes)
    together = max(1, min(rows, PANEL // (vectors * lanes)))
    return rows * vectors, -(-rows // together) * -(-together * vectors // kernel_rule("panel_vectors"))


def call_quantities(floats: int) -> Counter[str]:
    """Return the quantities of any call that reads and writes so many floats."""
    far = floats if floats > _CACHED_FLOATS else 0
    return Counter({Quantity.CALL: 1, Quantity.FAR_FLOAT: far})


def product_quantities(packed: Tensor, vectors: int, groups: int) -> Counter[str]:
    """Return the quantities of a product by a packed matrix.

    Args:
        packed: The packed matrix.
        vectors: How many vectors of pixels it is multiplied with.
        groups: In how many groups (`pixel_groups`).
    """
    counts: Counter[str] = Counter()
    far = 0
    for chunk in PackedMatrix(packed).chunks:
        counts[Quantity.ROW] += chunk.rows * vectors
        counts[Quantity.ROW_OF_GROUP] += chunk.rows * groups
        if chunk.is_dense:
            counts[Quantity.DENSE] += chunk.rows * chunk.columns * vectors
        else:
            entries = chunk.nnz
            counts[Quantity.ENTRY] += entries * vectors
            counts[Quantity.ENTRY_OF_GROUP] += entries * groups
            far += entries * groups
    if far > _CACHED_FLOATS // 32 * groups:  # they come from afar for every group of pixels
        counts[Quantity.FAR_ENTRY] += far
    return counts
