"""The report is written in parts, merged, read in order, and summed up."""

from itertools import pairwise

import pytest
from batches import outcome, rows

from mirl_sparse.batch import report as reports
from mirl_sparse.batch.history import History, Past
from mirl_sparse.batch.keys import REPORT, Item, Shard
from mirl_sparse.batch.report import ReportWriter, Status
from mirl_sparse.batch.status import read_status
from mirl_sparse.batch.stores import Address, FolderStore, open_store
from mirl_sparse.errors import UserError


@pytest.fixture
def store(tmp_path) -> FolderStore:
    return open_store(Address(str(tmp_path)))


def write(store, *outcomes, settings="s"):
    writer = ReportWriter(store, "t", settings)
    for item in outcomes:
        writer.add(item)
    writer.close()


def test_a_part_is_written_when_enough_rows_wait(store, monkeypatch):
    monkeypatch.setattr(reports, "_MAX_ROWS", 3)
    writer, sizes = ReportWriter(store, "t", "s"), []
    for number in range(7):
        writer.add(outcome(f"{number}.png"))
        writer.write_due()
        sizes.append(len(store.names(REPORT)))
    assert sizes == [0, 0, 1, 1, 1, 2, 2]


def test_a_part_is_written_when_rows_have_waited_long_enough(store, monkeypatch):
    monkeypatch.setattr(reports, "_MAX_SECONDS", 0.0)
    writer = ReportWriter(store, "t", "s")
    writer.add(outcome("a.png"))
    writer.write_due()
    assert list(rows(store.root)) == ["a.png"]


def test_parts_of_a_run_are_merged_and_hold_the_same_rows(store, monkeypatch):
    monkeypatch.setattr(reports, "_MAX_ROWS", 1)
    monkeypatch.setattr(reports, "_MERGED_PARTS", 5)
    writer = ReportWriter(store, "t", "s")
    for number in range(12):
        writer.add(outcome(f"{number}.png"))
        writer.write_due()
    assert len(store.names(REPORT)) == 4  # two of five rows, two of one
    writer.close()
    assert len(store.names(REPORT)) == 3
    assert list(rows(store.root)) == [f"{number}.png" for number in range(12)]


def test_a_merged_part_keeps_its_place_between_those_of_other_runs(store, monkeypatch):
    monkeypatch.setattr(reports, "_MAX_ROWS", 1)
    first = ReportWriter(store, "t", "s")
    for _ in range(2):
        first.add(outcome("a.png", Status.FAILED))
        first.write_due()
    write(store, outcome("a.png", Status.DONE))  # later, by another run
    first.close()
    assert rows(store.root)["a.png"]["status"] == "done"


def test_a_reader_begins_again_when_parts_are_merged_meanwhile(store, monkeypatch):
    write(store, outcome("a.png"))
    write(store, outcome("b.png"))
    read, calls = reports.read_part, []

    def read_part(store, name, columns):
        calls.append(name)
        if len(calls) == 1:
            raise FileNotFoundError(name)
        return read(store, name, columns)

    monkeypatch.setattr(reports, "read_part", read_part)
    assert len(History(store, "s", Shard())) == 2


def test_what_earlier_runs_did_counts_by_etag_and_settings(store):
    write(
        store,
        outcome("done.png"),
        outcome("bad.png", Status.FAILED),
        outcome("later.png", Status.UNREACHABLE),
    )
    write(store, outcome("other.png"), settings="another ticket")
    history = History(store, "s", Shard())
    past = {
        key: history.of(Item(key, "1"))
        for key in ("done.png", "bad.png", "later.png", "other.png", "new.png")
    }
    assert past == {
        "done.png": Past.FINISHED,
        "bad.png": Past.FAILED,
        "later.png": Past.NOTHING,
        "other.png": Past.NOTHING,
        "new.png": Past.NOTHING,
    }
    assert history.of(Item("done.png", "2")) is Past.NOTHING
    assert history.of(Item("done.png")) is Past.FINISHED


def test_the_last_row_of_a_key_counts_whatever_made_it(store):
    write(store, outcome("a.png"))
    write(store, outcome("a.png"), settings="another ticket")  # its result lies there now
    assert History(store, "s", Shard()).of(Item("a.png", "1")) is Past.NOTHING


def test_a_shard_remembers_its_own_photos_alone(store):
    write(store, *(outcome(f"{number}.png") for number in range(100)))
    sizes = [len(History(store, "s", Shard(number, 4))) for number in range(1, 5)]
    assert sum(sizes) == 100
    assert all(sizes)


def test_a_damaged_part_is_named(store):
    store.write(f"{REPORT}/x.parquet", b"no parquet")
    with pytest.raises(UserError, match=r"x\.parquet: is no part of a report"):
        History(store, "s", Shard())


def test_status_sums_up_the_last_rows(store):
    write(store, outcome("a.png", Status.FAILED, error="a.png: 3x5 pixels could not be restored"))
    write(
        store,
        outcome("a.png"),
        outcome("b.png", Status.FAILED, error="b.png: 7x9 pixels could not be restored"),
        outcome("c.png", Status.FAILED, error="c.png: 30x40 pixels could not be restored"),
        outcome("d.png", node="there", warning="restored in tiles"),
    )
    status = read_status(store, lists_failed=True)
    assert status.counts == {"done": 2, "failed": 2}
    assert status.failed == ["b.png", "c.png"]
    assert [(e.error, e.count, e.examples) for e in status.errors] == [
        ("# pixels could not be restored", 2, ["b.png", "c.png"])
    ]
    assert {node.node: node.photos for node in status.nodes} == {"here": 3, "there": 1}
    assert status.warnings == 1
    assert all(before.count >= after.count for before, after in pairwise(status.errors))


def test_a_machine_that_did_one_photo_a_second_did_3600_an_hour(store):
    write(store, outcome("a.png", seconds=1.0))
    assert read_status(store).nodes[0].per_hour == pytest.approx(3600, rel=0.01)


def test_a_target_without_a_report_is_one_line(store):
    with pytest.raises(UserError, match="holds no report"):
        read_status(store)
