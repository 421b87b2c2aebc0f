"""Restore photos over HTTP: `make_app` is the application, `run` serves it."""

from mirl_sparse.service.application import make_app
from mirl_sparse.service.limits import Access, Limits
from mirl_sparse.service.server import bind, run
from mirl_sparse.service.service import Service

__all__ = ["Access", "Limits", "Service", "bind", "make_app", "run"]
