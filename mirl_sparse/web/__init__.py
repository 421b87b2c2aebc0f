"""Run tickets in browsers: a package for npm (`src`), and a page that restores photos (`page`).

`build` puts the page together, and `server` serves it on this machine.
"""

from pathlib import Path

__all__ = ["BUILT", "PAGE", "build", "server"]

# The page's own files; `mirl-sparse serve` serves these.
PAGE = Path(__file__).parent / "page"

# Where `make web` puts the page, and `mirl-sparse page` takes it from.
BUILT = Path(__file__).parent / "built"
