"""Check what docs/batch.md promises: kills, rates, and listings of a million keys.

    python -m benchmarks.batch kills --engine local
    python -m benchmarks.batch kills --engine ray
    python -m benchmarks.batch rates
    python -m benchmarks.batch driver
    python -m benchmarks.batch listing

Linux only. Each prints what it saw and ends with status 1 if a promise is broken.
"""
