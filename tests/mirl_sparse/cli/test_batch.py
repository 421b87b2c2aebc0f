"""The commands of batches as they are typed."""

import json

import pytest
from batches import make_photo
from preloaded import mirl

pytest.importorskip("pyarrow", reason="the extra batch is not installed")


def test_a_folder_is_restored_and_its_status_told(tmp_path):
    make_photo(tmp_path / "in/a.png")
    make_photo(tmp_path / "in/sub/b.gif")
    (tmp_path / "in/bad.jpg").write_text("text")
    (tmp_path / "in/notes.txt").write_text("text")
    planned = mirl("batch", "in", "out", "--dry-run", cwd=tmp_path)
    assert planned.stdout.splitlines() == [
        "a.png -> a.png",
        "bad.jpg -> bad.jpg",
        "sub/b.gif -> sub/b.gif.png",
    ]
    assert planned.stderr.splitlines() == [
        "left out what holds no readable image: 1 .txt",
        "3 photos to restore; nothing done",
    ]
    assert not (tmp_path / "out").exists()
    done = mirl("batch", "in", "out", "--workers", 1, cwd=tmp_path)
    assert done.returncode == 1
    assert "2 done, 1 failed; " in done.stderr
    assert done.stderr.splitlines()[-1] == "mirl-sparse batch-status out says why"
    again = mirl("batch", "in", "out", cwd=tmp_path)
    assert again.returncode == 1
    assert "2 up to date, 1 failed before (--retry-failed)" in again.stderr
    assert mirl("batch-status", "out", "--failed", cwd=tmp_path).stdout == "bad.jpg\n"
    table = mirl("batch-status", "out", cwd=tmp_path).stdout
    assert table.startswith("3 photos: 2 done, 1 failed; 0 results with a warning\n")
    assert "not an image in a known format" in table
    status = json.loads(mirl("batch-status", "out", "--json", cwd=tmp_path).stdout)
    assert status["counts"] == {"done": 2, "failed": 1}
    assert status["nodes"][0]["photos"] == 3
    (tmp_path / "in/bad.jpg").unlink()
    assert mirl("batch", "in", "out", "--quiet", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("batch", "nothing", "out"), "nothing: no such file or folder"),
        (("batch", "in", "in"), "photos are never replaced"),
        (("batch", "in", "out", "--shard", "3/2"), "expected i/n"),
        (("batch", "in", "out", "--format", "xyz"), "format 'xyz' is unknown"),
        (("batch", "in", "out", "--ticket", "nothing"), "nor a shipped ticket"),
        (("batch", "in", "out", "--ticket", "nothing.mirl"), "nothing.mirl: cannot be read"),
        (("batch", "in", "out", "--storage-option", "anon"), "expected KEY=VALUE"),
        (("batch", "in", "out", "--manifest", "missing.csv"), "missing.csv: cannot be read"),
        (("batch", "in", "nowhere://out"), "nowhere://out: cannot be opened"),
        (("batch-status", "in"), "holds no report"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, tmp_path):
    make_photo(tmp_path / "in/a.png")
    done = mirl(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
