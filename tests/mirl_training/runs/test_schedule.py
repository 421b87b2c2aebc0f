"""Test the learning rates of steps and of epochs."""

import math

import pytest

from mirl_training.runs import learning_rate, learning_rate_of_epoch


def test_the_rate_of_steps_warms_up_and_falls_to_zero():
    rates = [learning_rate(i, 100, 2e-4, 10) for i in range(101)]
    assert rates[0] == pytest.approx(2e-5)
    assert max(rates) == pytest.approx(2e-4)
    assert rates[55] == pytest.approx(1e-4, rel=1e-6)
    assert rates[100] == pytest.approx(0, abs=1e-12)
    assert all(math.isfinite(r) for r in rates)


def test_the_rate_of_epochs_is_that_of_mirl():
    assert [learning_rate_of_epoch(e, 120, 2e-4, 15) for e in (0, 7, 14, 15)] == pytest.approx(
        [0, 1e-4, 2e-4, 2e-4]
    )
    assert learning_rate_of_epoch(67, 119, 2e-4, 15) == pytest.approx(1e-4)
    assert learning_rate_of_epoch(0, 3, 2e-4, 1) == learning_rate_of_epoch(0, 3, 2e-4, 0) == 2e-4
