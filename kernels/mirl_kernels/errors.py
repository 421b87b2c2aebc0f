"""Define the errors of the kernels."""


class BackendError(RuntimeError):
    """Report that a backend cannot run here, or not on these tensors; the message says what to do."""
