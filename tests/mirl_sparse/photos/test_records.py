"""A result is up to date only if nothing has changed since it was made; else it is made again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pictures import make_files, plain

from mirl_sparse.photos import Job, Jobs, Records, run_jobs, write_image
from mirl_sparse.photos.records import NAME

pytestmark = pytest.mark.usefixtures("here")


class Copier:
    def restore(self, image: NDArray[np.uint8], strength: float) -> NDArray[np.uint8]:
        return image


def restored(inputs: list[str], output: str | None = "out", made_by: str = "small") -> list[str]:
    """Restore what is not up to date, as the command does; return the names of these photos."""
    jobs = Jobs(inputs, output)
    many = len(jobs) > 1
    records = Records(made_by, is_new=many)
    due = [job for job in jobs if not (many and records.is_up_to_date(job))]
    assert run_jobs(due, Copier(), lambda *_: None, records=records) == 0
    return [str(job) for job in due]


def test_nothing_is_made_twice() -> None:
    make_files("in/a.png", "in/sub/b.png")
    assert restored(["in"]) == ["in/a.png", "in/sub/b.png"]
    assert restored(["in"]) == []
    assert restored([os.path.abspath("in")], os.path.abspath("out")) == []
    assert restored(["in"], made_by="another") == ["in/a.png", "in/sub/b.png"]


def test_the_result_of_another_photo_is_made_again() -> None:
    make_files("b/x.png", "b/y.png", "a/x.png", "a/y.png")
    restored(["a"])
    assert restored(["b/x.png", "b/y.png"]) == ["b/x.png", "b/y.png"]
    assert restored(["b"]) == []
    assert restored(["a"]) == ["a/x.png", "a/y.png"]


def test_an_older_photo_in_the_place_of_another_is_done() -> None:
    make_files("a.png", "b.png", "older.png")
    os.utime("older.png", (1, 1))
    restored(["a.png", "b.png"])
    shutil.copy2("older.png", "a.png")
    assert restored(["a.png", "b.png"]) == ["a.png"]


@pytest.mark.parametrize("harm", [lambda p: p.write_bytes(b""), Path.unlink, Path.touch])
def test_a_result_that_was_changed_is_made_again(harm) -> None:
    make_files("a.png", "b.png")
    restored(["a.png", "b.png"])
    harm(Path("out/a.png"))
    assert restored(["a.png", "b.png"]) == ["a.png"]


def test_a_photo_restored_alone_is_remembered_where_others_are() -> None:
    make_files("a.png", "b.png")
    restored(["a.png", "b.png"])
    assert restored(["a.png"], made_by="another") == ["a.png"]
    assert restored(["a.png"], made_by="another") == ["a.png"]
    assert restored(["a.png", "b.png"], made_by="another") == ["b.png"]
    assert restored(["a.png"]) == ["a.png"]
    assert restored(["a.png", "b.png"]) == ["b.png"]


def test_a_photo_restored_alone_leaves_no_record_where_there_is_none() -> None:
    make_files("a.png")
    restored(["a.png"])
    assert not Path("out", NAME).exists()


def test_a_photo_that_is_changed_while_it_is_restored_is_done_again() -> None:
    make_files("a.png", "b.png")
    records = Records("small")
    job = Job(Path("a.png"), Path("out/a.png"))
    with records.recording(job):
        write_image(Path("out/a.png"), plain(1))
        write_image(Path("a.png"), plain(2))
    assert not records.is_up_to_date(job)


def test_names_and_lines_of_any_kind_are_taken() -> None:
    make_files("in/a\udcff.png", "in/b\n.png")
    assert len(restored(["in"])) == 2
    with Path("out", NAME).open("a") as file:
        file.write('[]\n1\n{"result": "b", "made_by": "small"}\n{"result": "a')
    assert restored(["in"]) == []
