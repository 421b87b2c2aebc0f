"""Offer the package on the command line: one file per command, which `app` puts together.

Heavy packages are imported inside the commands, so that help answers at once.
"""

__all__ = ["app", "bench", "compile", "convert", "doctor", "inspect", "page", "printing", "restore", "tune"]
