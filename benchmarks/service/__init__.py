"""Load `mirl-sparse serve` with twice of what it can do; see `__main__.py`."""
