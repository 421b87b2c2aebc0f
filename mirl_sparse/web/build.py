"""Put the page together: its files, the engine, and, in base64, the WebAssembly modules and a ticket.

The page's policy allows no connection at all. So what it needs is inside JavaScript modules that it imports.
"""

from __future__ import annotations

import argparse
import base64
import shutil
import sys
from pathlib import Path

from mirl_sparse.errors import UserError
from mirl_sparse.web import BUILT, PAGE

_HERE = Path(__file__).parent
_MODULES = ("simd.wasm", "simd-threads.wasm", "relaxed.wasm", "relaxed-threads.wasm")


def build(output: Path, wasm: Path, ticket: Path) -> None:
    """Write the page into a folder. Files of an earlier build are replaced, others stay.

    Args:
        output: The folder; it is made where it is missing.
        wasm: The folder with the WebAssembly modules, as kernels/web.py builds them.
        ticket: A compiled ticket, as `mirl-sparse compile` writes it.

    Raises:
        UserError: A file is missing.
    """
    embedded = {name: wasm / name for name in _MODULES} | {"ticket": ticket}
    for file in embedded.values():
        if not file.is_file():
            raise UserError(f"{file} is missing; `make web` builds it")
    shutil.copytree(PAGE, output, dirs_exist_ok=True)
    shutil.copytree(_HERE / "src", output / "src", dirs_exist_ok=True)
    (output / "data").mkdir(exist_ok=True)
    for name, file in embedded.items():
        text = base64.b64encode(file.read_bytes()).decode()
        (output / "data" / f"{name}.js").write_text(f'export default "{text}";\n')


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(prog="python -m mirl_sparse.web.build", description=__doc__)
    parser.add_argument(
        "-o", "--output", type=Path, default=BUILT, help="folder to write; by default %(default)s"
    )
    parser.add_argument("--wasm", type=Path, required=True, help="folder with the WebAssembly modules")
    parser.add_argument("--ticket", type=Path, required=True, help="compiled ticket, such as small.mirl")
    options = parser.parse_args()
    try:
        build(options.output, options.wasm, options.ticket)
    except UserError as error:
        sys.exit(f"mirl_sparse.web.build: {error}")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
