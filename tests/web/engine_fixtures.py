"""Write what engine.test.mjs compares with: a program, and photos as this machine's C++ restores them.

python tests/web/engine_fixtures.py FOLDER
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np

from mirl_sparse.program import CompiledRestorer, find_program

SIZES = [(256, 256), (67, 101), (1, 1)]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    program = find_program("small")
    assert program, "there is no program of the shipped ticket small"
    shutil.copy(program, folder / "small.mirl")
    restorer, generator = CompiledRestorer(program), np.random.default_rng(0)
    for height, width in SIZES:
        photo = generator.integers(0, 256, (height, width, 4), np.uint8)
        restored = photo.copy()
        restored[..., :3] = restorer.restore(photo[..., :3])
        photo.tofile(folder / f"{height}x{width}.rgba")
        restored.tofile(folder / f"{height}x{width}.restored.rgba")
    (folder / "sizes.json").write_text(json.dumps(SIZES))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
