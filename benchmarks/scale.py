"""Time and memory of whole images from 0.06 to 12 megapixels, each in a process of its own:

    python benchmarks/scale.py TICKET

No tiles: the result is that of the whole image. Memory is the process's peak, PyTorch included.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import torch

from mirl_sparse import SparseRestorer

SIZES = [(256, 256), (512, 512), (1000, 1000), (1500, 2000), (3000, 4000)]


def one(ticket: str, height: int, width: int) -> None:
    restorer = SparseRestorer.from_pretrained(ticket, "cpu")
    restorer(torch.rand(1, 3, 64, 64))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    image = torch.rand(1, 3, height, width)
    begin = time.perf_counter()
    restorer(image)
    seconds, peak = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pixels = height * width
    print(
        f"| {width}x{height} | {seconds:.2f} s | {seconds / pixels * 1e6:.2f} s | {peak / 1e9:.2f} GB |"
        f" {(peak - before) / pixels:.0f} bytes |",
        flush=True,
    )


def main() -> None:
    if len(sys.argv) == 4:
        one(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
        return
    print(
        "| image | first restoration | per megapixel | peak memory | per pixel, beyond that of 64x64 |\n|---|---|---|---|---|",
        flush=True,
    )
    for height, width in SIZES:
        subprocess.run([sys.executable, __file__, sys.argv[1], str(height), str(width)], check=True)


if __name__ == "__main__":
    main()
