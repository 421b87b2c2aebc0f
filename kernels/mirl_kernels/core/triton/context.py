"""Bind a context variable for the length of a `with` block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

_T = TypeVar("_T")


@contextmanager
def bound(variable: ContextVar[_T], value: _T) -> Iterator[None]:
    """Set a context variable inside the `with` block and restore it afterwards."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
