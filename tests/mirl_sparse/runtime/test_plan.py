"""Memory plans: buffers that are in use at the same time never overlap."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirl_sparse.runtime.plan import InputSize, Lifetime, place

lifetimes = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 8), st.integers(1, 500)).map(
        lambda t: Lifetime(t[0], t[0] + t[1], t[2])
    ),
    min_size=1,
    max_size=20,
)


@given(lifetimes)
def test_stretches_in_use_at_the_same_time_do_not_overlap(wanted):
    starts, length = place(wanted)
    for (a, i), (b, j) in itertools.combinations(zip(wanted, starts, strict=True), 2):
        if a.overlaps(b):
            assert i + a.floats <= j or j + b.floats <= i
    assert min(starts) == 0
    assert length == max(start + life.floats for life, start in zip(wanted, starts, strict=True))


def test_memory_is_used_again_after_its_last_reader():
    starts, length = place([Lifetime(0, 1, 100), Lifetime(1, 2, 50), Lifetime(2, 3, 100)])
    assert starts == [0, 100, 0]
    assert length == 150


@pytest.mark.parametrize(("level", "expected"), [(0, (2, 24, 40)), (1, (2, 12, 20)), (3, (2, 3, 5))])
def test_each_level_halves_the_sides(level, expected):
    assert InputSize(2, 24, 40).at(level) == expected
