"""The example in C restores a photo by ARM's kernels as the library of this machine does."""

import subprocess

import numpy as np
import pytest

from mirl_sparse.program import CompiledRestorer, find_program

pytest.importorskip("arm_server", reason="make test-arm runs this")
from arm_server import BUILD, EMULATOR


def test_a_photo_is_restored_as_on_this_machine(tmp_path):
    photo = np.random.default_rng(0).normal(128, 25, (45, 61, 3)).clip(0, 255).astype(np.uint8)
    source, target, program = tmp_path / "in.ppm", tmp_path / "out.ppm", find_program("small")
    source.write_bytes((header := b"P6 61 45 255\n") + photo.tobytes())
    subprocess.run([*EMULATOR, BUILD / "restore", program, source, target], check=True)
    restored = np.frombuffer(target.read_bytes(), np.uint8, offset=len(header)).reshape(photo.shape)
    here = CompiledRestorer(program).restore(photo)
    assert here.std() < 15  # the noise is gone
    assert np.abs(restored.astype(int) - here).max() <= 1  # a sum in another order may round otherwise
