"""``python -m mirl_sparse``: the command, as torchrun starts it."""

from mirl_sparse.cli import main

main()
