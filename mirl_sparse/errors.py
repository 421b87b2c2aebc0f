"""Define the errors that tell users in one line what is wrong with their input."""


class UserError(ValueError):
    """Report bad input: the message says what was given, what was expected and what to do."""


class FileContentError(UserError):
    """Report what a file holds and should not; what the message quotes from it is made printable."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(message: str) -> str:
    r"""Return a message that quotes a file without newlines and without a terminal's escape sequences.

    Examples:
        >>> printable("no layer\n\x1b[2J")
        'no layer\\n\\x1b[2J'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
