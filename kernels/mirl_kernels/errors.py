"""Errors of the kernels."""


class BackendError(RuntimeError):
    """A backend that cannot run here; the message is one line and says what to do."""
