"""``python -m mirl_sparse``: the command, as torchrun starts it."""

from mirl_sparse.cli.app import main

if __name__ == "__main__":
    main()
