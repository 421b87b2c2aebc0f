"""Stores: lists that are never whole, uploads, and faults that pass or last."""

import tracemalloc
from collections import Counter
from itertools import islice

import fsspec
import pytest
from batches import make_photo, rows, run, settings
from fsspec.spec import AbstractFileSystem

from mirl_sparse.batch import stores
from mirl_sparse.batch.listing import find_entries
from mirl_sparse.batch.report import Status
from mirl_sparse.batch.run import Selection
from mirl_sparse.batch.stores import Address, StoreError, open_store, patiently
from mirl_sparse.errors import UserError


def directly(action, name):
    return action()


class Pages:
    """A store that makes up pages of keys when they are asked for."""

    protocol = ("s3", "s3a")

    def __init__(self, pages: int, size: int = 1000) -> None:
        self.pages, self.size, self.asked = pages, size, 0

    def call_s3(self, method: str, Bucket: str, Prefix: str, ContinuationToken: str = "0") -> dict:
        assert (method, Bucket, Prefix) == ("list_objects_v2", "bucket", "photos/")
        self.asked += 1
        page = int(ContinuationToken)
        keys = range(page * self.size, (page + 1) * self.size)
        contents = [{"Key": f"photos/{key:09}.png", "ETag": f'"{key}"'} for key in keys]
        more = page + 1 < self.pages
        return {"Contents": contents, "IsTruncated": more, "NextContinuationToken": str(page + 1)}


class GooglePages(Pages):
    protocol = ("gs", "gcs")

    def call(self, method: str, path: str, bucket: str, **asked) -> dict:
        assert (method, path, asked["json_out"]) == ("GET", "b/{}/o", True)
        page = self.call_s3("list_objects_v2", bucket, asked["prefix"], asked.get("pageToken", "0"))
        items = [{"name": entry["Key"], "etag": entry["ETag"]} for entry in page["Contents"]]
        return {"items": items} | (
            {"nextPageToken": page["NextContinuationToken"]} if page["IsTruncated"] else {}
        )


class Tree(AbstractFileSystem):
    """Folders of files that are made up when they are listed."""

    protocol = "tree"
    folders, files, asked = 1000, 1000, 0
    cachable = False

    def ls(self, path, detail=True, **_):
        type(self).asked += 1
        path = path.strip("/")
        if path == "root":
            return [{"name": f"root/{n:04}", "type": "directory", "size": 0} for n in range(self.folders)]
        return [
            {"name": f"{path}/{n:04}.png", "type": "file", "size": 5, "mtime": n} for n in range(self.files)
        ]


@pytest.mark.parametrize("kind", [Pages, GooglePages])
def test_a_flat_listing_is_read_page_by_page(kind):
    fs = kind(pages=3, size=10)
    entries = find_entries(fs, "bucket/photos", directly)
    assert [(e.key, e.etag) for e in islice(entries, 10)] == [(f"{n:09}.png", str(n)) for n in range(10)]
    assert fs.asked == 1
    assert len(list(entries)) == 20
    assert fs.asked == 3


@pytest.mark.parametrize(("fs", "root"), [(Pages(20), "bucket/photos"), (Tree(), "root")])
def test_a_listing_takes_the_memory_of_a_page(fs, root):
    tracemalloc.start()
    count = sum(1 for _ in islice(find_entries(fs, root, directly), 20_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 2e6  # all of them take 6 MB


def test_other_stores_are_listed_folder_by_folder():
    fsspec.register_implementation("tree", Tree, clobber=True)
    Tree.asked = 0
    items = open_store(Address("tree://root")).items("0000/", Counter())
    first = next(items)
    assert (first.key, first.etag) == ("0001/0000.png", "5-")  # mtime 0 says nothing
    assert next(items).etag == "5-1"
    assert Tree.asked == 3


def test_a_store_that_fails_is_asked_again_and_again(monkeypatch):
    waits = []
    monkeypatch.setattr(stores.time, "sleep", waits.append)
    answers = iter([OSError("reset"), TimeoutError(), "content"])

    def ask():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert patiently(ask, "a.png") == "content"
    assert len(waits) == 2
    assert 0.25 <= waits[0] <= 0.75
    assert 0.5 <= waits[1] <= 1.5


@pytest.mark.parametrize(
    ("error", "tries", "raised"),
    [
        (PermissionError("no"), 1, StoreError),
        (FileNotFoundError("none"), 1, FileNotFoundError),
        (OSError("down"), 6, StoreError),
        (KeyError("a bug"), 1, KeyError),
    ],
)
def test_faults_that_last_and_bugs_are_not_tried_again(error, tries, raised, monkeypatch):
    monkeypatch.setattr(stores.time, "sleep", lambda seconds: None)
    calls = []

    def fail():
        calls.append(1)
        raise error

    with pytest.raises(raised):
        patiently(fail, "a.png")
    assert len(calls) == tries


@pytest.mark.parametrize(
    ("url", "message"),
    [("nothing://x/y", "cannot be opened"), ("s3://", "names no bucket"), ("memory://", "names no bucket")],
)
def test_a_store_that_cannot_be_opened_is_one_line(url, message):
    if url.startswith("s3"):
        pytest.importorskip("s3fs")
    with pytest.raises(UserError, match=message):
        open_store(Address(url))


@pytest.fixture(scope="module")
def s3():
    """A real S3 server on this machine, with a bucket; yield its address."""
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    pytest.importorskip("s3fs")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "none")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "none")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        address = "http://{}:{}".format(*running.get_host_and_port())
        fsspec.filesystem("s3", endpoint_url=address).mkdir("bucket")
        yield address
    running.stop()


def upload(address: str, tmp_path, *names: str) -> fsspec.AbstractFileSystem:
    fs = fsspec.filesystem("s3", endpoint_url=address, use_listings_cache=False)
    for value, name in enumerate(names):
        make_photo(tmp_path / name, value)
        fs.pipe_file(f"bucket/in/{name}", (tmp_path / name).read_bytes())
    return fs


def test_photos_go_from_s3_to_s3_and_a_second_run_does_what_has_changed(s3, tmp_path):
    names = ["a.png", "sub/b.jpg", "sub/c.webp", "d.gif"]
    fs = upload(s3, tmp_path, *names)
    fs.pipe_file("bucket/in/bad.png", b"text")
    fs.pipe_file("bucket/in/folder/", b"")
    fs.pipe_file("bucket/in/hash", b"no image")
    job = settings("s3://bucket/in", "s3://bucket/out", endpoint_url=s3)
    assert run(job).counts == {Status.DONE: 4, Status.FAILED: 1, Status.LEFT_OUT: 1}
    out = {name for name in fs.find("bucket/out") if "/_mirl/" not in name}
    assert out == {
        "bucket/out/a.png",
        "bucket/out/sub/b.jpg",
        "bucket/out/sub/c.webp",
        "bucket/out/d.gif.png",
    }
    assert fs.cat_file("bucket/out/a.png")[:4] == b"\x89PNG"
    report = rows("s3://bucket/out", endpoint_url=s3)
    assert report["a.png"]["etag"] == fs.info("bucket/in/a.png")["ETag"].strip('"')
    assert run(job).tasks == []
    make_photo(tmp_path / "a.png", 99)
    fs.pipe_file("bucket/in/a.png", (tmp_path / "a.png").read_bytes())
    assert run(job).tasks == ["a.png"]


def test_a_target_in_the_same_prefix_and_a_manifest_in_the_store(s3, tmp_path):
    fs = upload(s3, tmp_path, "x/a.png", "x/b.png")
    fs.pipe_file("bucket/list.csv", b"key\ns3://bucket/in/x/a.png\n")
    job = settings("s3://bucket/in/x", "s3://bucket/in/x/out", endpoint_url=s3)
    chosen = Selection(manifest=Address("s3://bucket/list.csv", {"endpoint_url": s3}))
    assert run(job, chosen).tasks == ["a.png"]
    assert run(job, chosen).tasks == []
    assert run(job).tasks == ["b.png"]  # neither what is done nor results
    assert run(job).tasks == []


def test_a_bucket_that_is_not_there_is_one_line(s3, tmp_path):
    with pytest.raises((UserError, FileNotFoundError), match="bucket"):
        run(settings("s3://nobucket/in", tmp_path / "out", endpoint_url=s3))
