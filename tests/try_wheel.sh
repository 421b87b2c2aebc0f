#!/bin/sh
# Install a wheel where there is no compiler and no PyTorch, and restore a photo with it:
# tests/try_wheel.sh PYTHON WHEEL
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
wheel=$(realpath "$2")
folder=$(mktemp -d)
trap '/bin/rm -rf "$folder"' EXIT
"$1" -m venv "$folder/venv"
cd "$folder"
export PATH="$folder/venv/bin"
python -m pip install -q -c "$root/constraints.txt" "$wheel"
python - <<'PROGRAM'
import importlib.util
import shutil

import numpy as np
from PIL import Image

assert importlib.util.find_spec("torch") is None
assert not any(map(shutil.which, ("cc", "c++", "gcc", "g++", "clang", "clang++")))
photo = np.random.default_rng(0).normal(128, 25, (96, 128, 3)).clip(0, 255).astype(np.uint8)
Image.fromarray(photo).save("noisy.png")
PROGRAM
mirl-sparse restore noisy.png -o restored.png
python -c "
import numpy as np
from PIL import Image
assert np.asarray(Image.open('restored.png')).std() < 15"
echo "works: ${wheel##*/}"
