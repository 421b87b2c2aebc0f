"""Tickets are found by path, or by the name of one that comes with the package."""

import pytest

from mirl_sparse.tickets import TicketError, find_ticket, read_ticket, shipped_names


def test_the_shipped_tickets_are_found_by_name_and_read():
    assert "small" in shipped_names()
    for name in shipped_names():
        network, statistics = read_ticket(find_ticket(name))
        assert not network.training
        assert 0 < statistics["density"] < 1


def test_a_file_goes_before_a_name_and_a_name_before_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    assert find_ticket("small").name == "small.safetensors"
    (tmp_path / "small").rmdir()
    (tmp_path / "small").write_bytes(b"")
    assert find_ticket("small").read_bytes() == b""


def test_another_folder_is_named_as_one(tmp_path):
    with pytest.raises(TicketError, match=r"is a folder without ticket\.safetensors"):
        find_ticket(tmp_path)


@pytest.mark.parametrize("source", ["nothing", "", "a\0b", "x" * 5000])
def test_other_names_are_refused_with_the_names_that_exist(source):
    with pytest.raises(TicketError, match=r"no such file, nor a shipped ticket \(haze, small\)") as caught:
        find_ticket(source)
    assert str(caught.value).isprintable()
