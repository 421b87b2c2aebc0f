"""Define the defaults that the command line shows; they are here so that its help needs no PyTorch."""

TICKET = "small"  # the shipped ticket that is used where none is named
HAZE_TICKET = "haze"  # the shipped ticket for photos that are known to be hazy
