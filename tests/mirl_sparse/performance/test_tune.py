"""Tuning is refused before the search where its result could not be written."""

import os

import pytest

from mirl_sparse import UserError
from mirl_sparse.performance import tune as tuning
from mirl_sparse.runtime.tuning import tuning_path


class Searched(Exception):
    """The search began."""


@pytest.fixture
def ticket(tmp_path, monkeypatch):
    def read_ticket(path):
        raise Searched

    monkeypatch.setattr(tuning, "check_gpu", lambda: None)
    monkeypatch.setattr(tuning, "read_ticket", read_ticket)
    monkeypatch.setattr(tuning, "read_tunings", lambda path: {})
    path = tmp_path / "tickets" / "a.safetensors"
    path.parent.mkdir()
    path.touch()
    return path


def forbid(monkeypatch, folder):
    """Make a folder one that nothing can be made in; a mode would not stop root."""
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: os.fspath(path) != str(folder) and access(path, mode)
    )


def test_a_folder_that_may_be_written_to_is_searched_for(ticket):
    with pytest.raises(Searched):
        tuning.tune(ticket)


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_that_may_not_be_written_to_is_refused_even_if_the_file_may(ticket, monkeypatch, exists):
    if exists:
        tuning_path(ticket).touch()
    forbid(monkeypatch, ticket.parent)
    with pytest.raises(UserError, match=r"a\.tuning\.json: may not be written, .* copy the ticket"):
        tuning.tune(ticket)


def test_the_folder_behind_a_link_counts(ticket, monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/tuning").touch()
    tuning_path(ticket).symlink_to(tmp_path / "elsewhere/tuning")
    forbid(monkeypatch, tmp_path / "elsewhere")
    with pytest.raises(UserError, match="may not be written"):
        tuning.tune(ticket)


def test_a_file_that_may_not_be_written_is_replaced_where_its_folder_allows_it(ticket, monkeypatch):
    tuning_path(ticket).touch()
    forbid(monkeypatch, tuning_path(ticket))
    with pytest.raises(Searched):
        tuning.tune(ticket)
