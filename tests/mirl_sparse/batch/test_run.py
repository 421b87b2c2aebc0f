"""Test what a batch restores, what it skips, and what it says of photos that cannot be restored."""

import errno
import os
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from batches import make_photo, rows, run, settings
from PIL import Image

from mirl_sparse.batch import stores
from mirl_sparse.batch.dispatch import Death
from mirl_sparse.batch.keys import Shard
from mirl_sparse.batch.report import Status
from mirl_sparse.batch.run import Selection
from mirl_sparse.batch.stores import Address
from mirl_sparse.errors import UserError
from mirl_sparse.photos import Manner

pytestmark = pytest.mark.usefixtures("here")


def results(target="out") -> list[str]:
    paths = (p.relative_to(target).as_posix() for p in Path(target).rglob("*") if p.is_file())
    return sorted(path for path in paths if not path.startswith("_mirl/report/"))


def test_each_photo_is_restored_and_reported():
    for name in ("a.png", "sub/b.jpg", "sub/c.gif"):
        make_photo(Path("in", name))
    Path("in/sub/bad.png").write_text("text")
    assert run(settings("in", "out")).counts == {Status.DONE: 3, Status.FAILED: 1}
    assert results() == ["a.png", "sub/b.jpg", "sub/c.gif.png"]
    assert np.array(Image.open("out/a.png")).tolist() == np.array(Image.open("in/a.png")).tolist()
    report = rows("out")
    assert report["sub/c.gif"]["target"] == "sub/c.gif.png"
    assert report["sub/bad.png"]["error"].startswith("sub/bad.png: not an image")
    assert report["a.png"]["status"] == "done"
    assert len(report["a.png"]["ticket"]) == 64
    assert report["a.png"]["node"] == "here"


def test_a_second_run_does_what_is_new_changed_or_asked_for():
    for name in ("a.png", "b.png", "bad.png"):
        make_photo(Path("in", name))
    Path("in/bad.png").write_text("text")
    job = settings("in", "out")
    assert run(job).tasks == ["a.png", "b.png", "bad.png"]
    assert run(job).tasks == []
    assert run(job, Selection(retry_failed=True)).tasks == ["bad.png"]
    make_photo(Path("in/c.png"))
    make_photo(Path("in/b.png"), 50)
    os.utime("in/b.png", (1, 1))
    assert run(job).tasks == ["b.png", "c.png"]
    make_photo(Path("in/bad.png"))  # repaired: another etag
    assert run(job).tasks == ["bad.png"]


@pytest.mark.parametrize(
    "change", [{"manner": Manner(0, has_metadata=False)}, {"ticket": "haze"}, {"suffix": ".png"}]
)
def test_other_settings_make_all_results_again(change):
    make_photo(Path("in/a.png"))
    job = settings("in", "out")
    run(job)
    assert run(settings("in", "out", **change)).tasks == ["a.png"]
    assert run(job).tasks == ["a.png"]


def test_verify_makes_missing_results_again():
    for name in ("a.png", "b.png"):
        make_photo(Path("in", name))
    job = settings("in", "out")
    run(job)
    Path("out/b.png").unlink()
    assert run(job).tasks == []
    verified = run(job, Selection(verify=True))
    assert verified.tasks == ["a.png", "b.png"]
    assert verified.counts == {Status.DONE: 1}
    assert results() == ["a.png", "b.png"]


def test_shards_share_the_photos_and_the_report():
    names = [f"{number}.png" for number in range(8)]
    for name in names:
        make_photo(Path("in", name))
    done = [run(settings("in", "out"), Selection(shard=Shard(i, 3))).tasks for i in (1, 2, 3)]
    assert sorted(chain(*done)) == names
    assert sorted(rows("out")) == names
    assert run(settings("in", "out")).tasks == []


def test_two_photos_whose_results_would_meet_are_told_apart():
    make_photo(Path("in/a.gif"))
    make_photo(Path("in/a.gif.png"), 200)
    assert run(settings("in", "out")).counts == {Status.DONE: 1, Status.FAILED: 1}
    error = rows("out")["a.gif"]["error"]
    assert error == (
        "a.gif: would be written to a.gif.png, where the result of the photo of that name goes; rename one"
    )
    assert np.array(Image.open("out/a.gif.png")).mean() == 200


def test_a_target_inside_of_the_source_is_no_source():
    make_photo(Path("in/a.png"))
    job = settings("in", "in/out")
    assert run(job).tasks == ["a.png"]
    assert run(job).tasks == []


@pytest.mark.parametrize("target", ["in", ".", "link"])
def test_photos_are_never_replaced(target):
    make_photo(Path("in/a.png"))
    Path("link").symlink_to("in")
    with pytest.raises(UserError, match="photos are never replaced"):
        run(settings("in", target))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.txt", "b.png\r\nsub/c.png\n\n"),
        ("list.csv", "size,key\n1,b.png\n2,sub/c.png\n"),
    ],
)
def test_a_manifest_names_the_photos(name, content):
    for photo in ("a.png", "b.png", "sub/c.png"):
        make_photo(Path("in", photo))
    Path(name).write_text(content)
    chosen = Selection(manifest=Address(name))
    assert run(settings("in", "out"), chosen).tasks == ["b.png", "sub/c.png"]
    assert run(settings("in", "out"), chosen).tasks == []
    assert run(settings("in", "out")).tasks == ["a.png"]  # etags are the same as of a listing


def test_a_manifest_of_parquet_has_etags_and_whole_paths():
    import pyarrow as pa
    import pyarrow.parquet as pq

    make_photo(Path("in/a.png"))
    for etag, due in (("1", ["a.png"]), ("1", []), ("2", ["a.png"])):
        pq.write_table(pa.table({"key": [os.path.realpath("in/a.png")], "etag": [etag]}), "list.parquet")
        assert run(settings("in", "out"), Selection(manifest=Address("list.parquet"))).tasks == due


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", "name\na.png\n", "has the columns name; expected one named key"),
        ("list.parquet", "text", "cannot be read"),
        ("list.txt", "", "names no photo"),
        ("missing.txt", None, "cannot be read"),
    ],
)
def test_a_manifest_that_names_nothing_is_one_line(name, content, message):
    make_photo(Path("in/a.png"))
    if content is not None:
        Path(name).write_text(content)
    with pytest.raises(UserError, match=message):
        run(settings("in", "out"), Selection(manifest=Address(name)))


def test_a_key_outside_of_the_source_is_not_followed():
    make_photo(Path("secret.png"))
    make_photo(Path("in/a.png"))
    Path("list.txt").write_text("../secret.png\na.png\ngone.png\n")
    run(settings("in", "deep/out"), Selection(manifest=Address("list.txt")))
    assert results("deep/out") == ["a.png"]
    assert sorted(os.listdir("deep")) == ["out"]
    report = rows("deep/out")
    assert "has the part '..'" in report["../secret.png"]["error"]
    assert report["gone.png"]["error"] == "gone.png: no such photo"


def test_a_photo_whose_worker_dies_is_tried_once_more_alone():
    for name in ("a.png", "b.png", "c.png", "d.png"):
        make_photo(Path("in", name))
    deaths = iter([Death("SIGKILL")])
    done = run(
        settings("in", "out"),
        workers=2,
        dies=lambda task: next(deaths, None) if task.key == "b.png" else None,
    )
    assert done.counts == {Status.DONE: 4}
    assert done.tasks.count("b.png") == 2
    assert done.alone.count("b.png") == 1  # first beside another one


def test_a_photo_that_kills_its_workers_fails_and_the_others_are_done():
    for name in ("a.png", "b.png", "c.png"):
        make_photo(Path("in", name))
    done = run(
        settings("in", "out"), workers=2, dies=lambda task: Death("SIGSEGV") if task.key == "b.png" else None
    )
    assert done.counts == {Status.DONE: 2, Status.FAILED: 1}
    assert rows("out")["b.png"]["error"] == "b.png: its worker died, and so did the next one (SIGSEGV)"


def test_machines_that_are_lost_are_no_fault_of_the_photo():
    make_photo(Path("in/a.png"))
    deaths = iter([Death("node died", is_blameless=True)] * 5)
    done = run(settings("in", "out"), dies=lambda task: next(deaths, None))
    assert done.counts == {Status.DONE: 1}


def test_a_target_that_takes_nothing_ends_the_run():
    for number in range(30):
        make_photo(Path(f"in/{number}.png"))
    write = stores.write_whole

    def write_whole(path, data, unfinished):
        if path.suffix == ".png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data, unfinished)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stores, "write_whole", write_whole)
        with pytest.raises(UserError, match=r"photos in a row failed for their store .*No space left"):
            run(settings("in", "out"))
    assert {row["status"] for row in rows("out").values()} == {"unreachable"}
    assert run(settings("in", "out")).counts == {Status.DONE: 30}


def test_what_kills_left_unfinished_is_removed_after_a_day():
    make_photo(Path("in/a.png"))
    for name in ("old", "new"):
        path = Path("out/_mirl/unfinished", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    os.utime("out/_mirl/unfinished/old", (1, 1))
    run(settings("in", "out"))
    assert results() == ["_mirl/unfinished/new", "a.png"]


def nothing() -> None:
    """Make no source."""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nothing, "no such file or folder"),
        (Path("in").mkdir, "holds no image"),
        (Path("in").touch, "is a file; expected a folder or a store"),
    ],
)
def test_a_source_without_photos_is_one_line(make, message):
    make()
    with pytest.raises(UserError, match=message):
        run(settings("in", "out"))
    assert not Path("out").exists()
