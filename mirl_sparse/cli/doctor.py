"""Offer ``mirl-sparse doctor``: which backends work on this machine."""

from __future__ import annotations


def doctor() -> None:
    """Say what this machine has, which backends work on it, and why the others do not."""
    from mirl_sparse.performance.doctor import backends, machine

    for name, value in machine().items():
        print(f"{name + ':':13} {value}")
    print()
    for name, fault in backends().items():
        print(f"{name + ':':13} " + (f"does not work: {fault}" if fault else "works"))
