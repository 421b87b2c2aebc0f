"""What a user did wrong, in one line."""


class UserError(ValueError):
    """Bad input: the message says what was given, what was expected and what to do."""


def printable(message: str) -> str:
    """A message that quotes a file, as it can be printed: neither a newline nor a terminal's escape sequence may pass."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
