"""Damage files as broken disks, networks and hands do."""

import numpy as np


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Return the data with some bytes changed, a stretch taken out, or the end cut off."""
    values = np.frombuffer(data, np.uint8).copy()
    kind = rng.integers(4)
    if kind < 2:
        end = len(values) if kind else min(len(values), 100)
        places = rng.integers(0, end, rng.integers(1, 6))
        values[places] = rng.integers(0, 256, len(places))
        return values.tobytes()
    start = int(rng.integers(len(values)))
    stop = len(values) if kind == 2 else start + int(rng.integers(1, 50))
    return np.delete(values, slice(start, stop)).tobytes()
