"""Measure the product: the suite times it against dense networks, the studies answer single questions.

Programs start from the repository's root, as in ``python -m benchmarks.suite.report``. Nothing is installed.
"""
