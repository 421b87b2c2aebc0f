"""Train restoration networks, prune them in rounds, and score what is left.

The packages, from the bottom up: ``data`` makes batches of photos, ``pruning`` chooses which weights stay,
``engine`` trains one step, ``runs`` carries a run through its rounds, ``evaluation`` scores restorers on test
sets, and ``cli`` holds the commands. Import from the packages: this file imports nothing, so that the command
line starts fast.
"""
