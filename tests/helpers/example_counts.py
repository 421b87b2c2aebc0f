"""Say how many examples hypothesis draws, in one place for tests that run again under other settings."""

import os

from hypothesis import settings

SHARE = "MIRL_TEST_EXAMPLES"  # the environment variable: a part of the examples, 0 to 1


def examples(count: int) -> settings:
    """Return settings of so many examples, or of the part that the environment names."""
    return settings(max_examples=max(5, round(count * float(os.environ.get(SHARE, "1")))))
