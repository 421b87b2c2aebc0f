"""Defaults that the command line shows; they are here so that its help needs no PyTorch."""

TICKET = "small"  # the shipped ticket that is used where none is named
PRECISIONS = ("float16", "bfloat16", "float32")  # of activations on a GPU
