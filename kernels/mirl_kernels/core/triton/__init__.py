"""Share what the Triton kernels need: launches, tiles, workspaces, strips and row groups.

Neither this package nor the modules that it exports from import the package triton, which exists on Linux
only and takes seconds to load. The modules `product`, `taps`, `offline` and `model` do, so import them where
they are needed.
"""

from mirl_kernels.core.triton.launches import Launch, launch, recording
from mirl_kernels.core.triton.packed import Packed, as_type
from mirl_kernels.core.triton.row_groups import HEIGHTS, RowGroups, cluster_rows, pack_row_groups
from mirl_kernels.core.triton.strips import (
    MAX_HIDDEN_BYTES,
    PAD,
    Strip,
    hidden_planes,
    split_into_strips,
)
from mirl_kernels.core.triton.tuner import Tile, Tuner, cheapest
from mirl_kernels.core.triton.work import Work, count_work, counts_work_of, nbytes, touched_elements
from mirl_kernels.core.triton.workspace import Workspace

__all__ = [
    "HEIGHTS",
    "MAX_HIDDEN_BYTES",
    "PAD",
    "Launch",
    "Packed",
    "RowGroups",
    "Strip",
    "Tile",
    "Tuner",
    "Work",
    "Workspace",
    "as_type",
    "cheapest",
    "cluster_rows",
    "count_work",
    "counts_work_of",
    "hidden_planes",
    "launch",
    "nbytes",
    "pack_row_groups",
    "recording",
    "split_into_strips",
    "touched_elements",
]
