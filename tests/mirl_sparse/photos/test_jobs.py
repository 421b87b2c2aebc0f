from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from mirl_sparse.errors import UserError
from mirl_sparse.photos.images import ImageError, Photo, read_image, read_photo, write_image, write_photo
from mirl_sparse.photos.jobs import Job, plan, run

RGB = NDArray[np.uint8]


class Inverter:
    """Inverts colours, remembers what it was given, and fails on demand."""

    def __init__(self, fail: Callable[[RGB], Exception | None] = lambda image: None) -> None:
        self.seen: list[RGB] = []
        self.fail = fail

    def restore(self, image: RGB) -> RGB:
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3
        self.seen.append(image)
        if error := self.fail(image):
            raise error
        return 255 - image


class Log:
    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.errors: list[UserError | None] = []

    def __call__(self, job: Job, error: UserError | None, seconds: float) -> None:
        assert seconds >= 0
        self.jobs.append(job)
        self.errors.append(error)


def photo(value: int = 10, height: int = 3, width: int = 5) -> RGB:
    return np.full((height, width, 3), value, np.uint8)


def tree(*names: str) -> None:
    for value, name in enumerate(names):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"):
            write_image(path, photo(value))
        else:
            path.write_text("not an image")


def routes(inputs: list[str], output: str | None = None, format: str | None = None) -> dict[str, str]:
    return {str(job.source): str(job.target) for job in plan(inputs, output, format)}


def refusal(inputs: list[str], output: str | None = None, format: str | None = None) -> str:
    before = files()
    with pytest.raises(UserError) as caught:
        plan(inputs, output, format)
    assert "\n" not in str(caught.value)
    assert files() == before
    return str(caught.value)


def files() -> list[str]:
    return sorted(str(p) for p in Path().rglob("*") if not p.is_dir())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestOneFile:
    def test_to_a_file(self) -> None:
        tree("a.jpg")
        assert plan(["a.jpg"], "b.png") == [Job(Path("a.jpg"), Path("b.png"), "PNG")]
        assert routes(["a.jpg"], "new/b.webp", "webp") == {"a.jpg": "new/b.webp"}

    def test_to_a_folder(self) -> None:
        tree("in/a.JPG")
        assert routes(["in/a.JPG"], "out") == {"in/a.JPG": "out/a.JPG"}
        assert routes(["in/a.JPG"], "v1.2") == {"in/a.JPG": "v1.2/a.JPG"}
        assert routes(["in/a.JPG"], "out.gif/") == {"in/a.JPG": "out.gif/a.JPG"}
        assert routes(["in/a.JPG"], "out", "PNG") == {"in/a.JPG": "out/a.png"}

    def test_a_folder_named_like_an_image(self) -> None:
        tree("a.png")
        Path("out.png").mkdir()
        assert routes(["a.png"], "out.png") == {"a.png": "out.png/a.png"}

    def test_beside(self) -> None:
        tree("in/a.JPG", "x.tar.png")
        assert routes(["in/a.JPG"]) == {"in/a.JPG": "in/a_restored.JPG"}
        assert routes(["in/a.JPG"], None, "tif") == {"in/a.JPG": "in/a_restored.tif"}
        assert routes(["x.tar.png"]) == {"x.tar.png": "x.tar_restored.png"}

    def test_unknown_suffix_becomes_png(self) -> None:
        tree("a.gif", "scan")
        assert routes(["a.gif", "scan"], "out") == {"a.gif": "out/a.png", "scan": "out/scan.png"}
        assert routes(["scan"]) == {"scan": "scan_restored.png"}

    def test_hidden_file_named_explicitly(self) -> None:
        tree(".a.png")
        assert routes([".a.png"], "out") == {".a.png": "out/.a.png"}

    def test_one_file_to_standard_output(self) -> None:
        tree("a.jpg")
        assert plan(["a.jpg"], "-") == [Job(Path("a.jpg"), None, "JPEG")]
        assert plan(["a.jpg"], "-", "png") == [Job(Path("a.jpg"), None, "PNG")]


class TestFolders:
    def test_tree_is_mirrored_in_order(self) -> None:
        tree("in/b.png", "in/a.png", "in/sub/deep/c.jpg", "in/sub/a.png")
        jobs = plan(["in"], "out")
        assert [str(job.target) for job in jobs] == [
            "out/a.png",
            "out/b.png",
            "out/sub/a.png",
            "out/sub/deep/c.jpg",
        ]
        assert [str(job.source) for job in jobs] == [
            "in/a.png",
            "in/b.png",
            "in/sub/a.png",
            "in/sub/deep/c.jpg",
        ]
        assert not Path("out").exists()

    def test_other_and_hidden_files_are_skipped(self) -> None:
        tree("in/a.PNG", "in/notes.txt", "in/noext", "in/.b.png", "in/.x.part", "in/.cache/c.png")
        assert routes(["in"], "out") == {"in/a.PNG": "out/a.PNG"}

    @pytest.mark.parametrize("inputs", [["."], ["./"], ["**/*.png"], ["*", "*/*"]])
    def test_earlier_results_inside_the_input_are_no_inputs(self, inputs: list[str]) -> None:
        tree("a.png", "sub/b.png", "out/a.png", "out/sub/b.png", "output/c.png")
        sources = {str(job.source) for job in plan(inputs, "out")}
        assert sources == {"a.png", "sub/b.png", "output/c.png"}

    def test_earlier_result_as_a_file_inside_the_input(self) -> None:
        tree("in/a.png", "in/out.png")
        assert routes(["in"], "in/out.png") == {"in/a.png": "in/out.png"}

    def test_output_above_the_input_shuts_nothing_out(self) -> None:
        tree("in/a.png")
        assert routes(["in"], ".") == {"in/a.png": "a.png"}

    def test_beside_runs_twice_with_the_same_result(self) -> None:
        tree("in/a.png", "in/sub/b.jpg", "in/other_restored.png")
        expected = {
            "in/a.png": "in/a_restored.png",
            "in/sub/b.jpg": "in/sub/b_restored.jpg",
            "in/other_restored.png": "in/other_restored_restored.png",  # its source is not there: a photo like any
        }
        for _ in range(2):
            assert routes(["in"]) == expected
            assert run(plan(["in"], None), Inverter(), Log()) == 0
        assert len(files()) == 6

    def test_several_inputs_at_once(self) -> None:
        tree("one/a.png", "two/sub/b.png", "c.png")
        assert routes(["c.png", "two", "one"], "out") == {
            "c.png": "out/c.png",
            "two/sub/b.png": "out/sub/b.png",
            "one/a.png": "out/a.png",
        }

    def test_a_folder_that_cannot_be_listed_is_not_passed_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tree("in/a.png", "in/sub/b.png")
        scandir = os.scandir

        def denied(path: str) -> object:
            if str(path).endswith("sub"):
                raise PermissionError(13, "Permission denied", path)
            return scandir(path)

        monkeypatch.setattr(os, "scandir", denied)
        assert refusal(["in"], "out") == "in/sub: cannot be listed (Permission denied)"

    def test_links(self) -> None:
        tree("in/a.png", "elsewhere/b.png")
        Path("in/link.png").symlink_to("a.png")
        Path("in/loop").symlink_to(".")
        assert routes(["in"], "out") == {"in/a.png": "out/a.png", "in/link.png": "out/link.png"}


class TestGlobs:
    def test_quoted(self) -> None:
        tree("in/a.png", "in/b.jpg", "in/c.txt", "in/noext", "in/sub/d.png", "in/.e.png")
        assert routes(["in/*.png"], "out") == {"in/a.png": "out/a.png"}
        assert routes(["in/*"], "out") == {"in/a.png": "out/a.png", "in/b.jpg": "out/b.jpg"}
        assert routes(["in/**/*.png"], "out") == {"in/a.png": "out/a.png", "in/sub/d.png": "out/d.png"}
        assert routes(["**"], "out") == {
            "in/a.png": "out/a.png",
            "in/b.jpg": "out/b.jpg",
            "in/sub/d.png": "out/d.png",
        }
        assert routes(["in/[ab].*"]) == {"in/a.png": "in/a_restored.png", "in/b.jpg": "in/b_restored.jpg"}

    def test_a_suffix_asked_for_is_taken(self) -> None:
        tree("a.gif", "b.png")
        assert routes(["*.gif"], "out") == {"a.gif": "out/a.png"}

    def test_a_real_name_is_no_pattern(self) -> None:
        tree("a[1].png", "a1.png")
        assert routes(["a[1].png"], "out") == {"a[1].png": "out/a[1].png"}

    def test_the_same_file_twice_is_meant_once(self, here: Path) -> None:
        tree("a.png", "b.png")
        assert len(plan(["a.png", "*.png", "./b.png", str(here / "a.png"), "."], "out")) == 2


class TestRefusals:
    def test_nothing_there(self) -> None:
        tree("empty/notes.txt", "a.png")
        assert refusal([], "out").startswith("nothing to restore")
        assert refusal(["a.png", "missing.png"], "out") == "missing.png: no such file or folder"
        assert refusal(["a.png", "empty"], "out").startswith("empty: holds no image (")
        assert refusal(["*.webp"], "out").startswith("*.webp: matches no image (")
        assert "no such file" in refusal([""], "out")
        assert "no such file" in refusal(["x" * 5000], "out")

    def test_two_photos_to_one_file_names_both(self) -> None:
        tree("one/a.png", "two/a.png", "one/a.jpg")
        for inputs in (["one/a.png", "two/a.png"], ["one", "two"], ["*/a.png"]):
            assert refusal(inputs, "out").startswith(
                "one/a.png and two/a.png would both be written to out/a.png;"
            )
        message = refusal(["one"], "out", "png")
        assert message.startswith("one/a.jpg and one/a.png would both be written to out/a.png;")
        assert "both" in refusal(["one"], None, "png")

    def test_an_input_is_never_replaced(self, here: Path) -> None:
        tree("in/a.png", "in/b.png")
        for inputs, output in [
            (["in/a.png"], "in/a.png"),
            (["in/a.png"], str(here / "in" / "a.png")),
            (["in/a.png"], "in"),
            (["in"], "in"),
            (["in/*.png"], "in/"),
            (["in/a.png", "in/b.png"], "in/../in"),
        ]:
            assert "a.png: is an input, and inputs are never replaced" in refusal(inputs, output)

    def test_nor_through_another_name(self) -> None:
        tree("a.png", "b.png")
        Path("soft.png").symlink_to("a.png")
        os.link("a.png", "hard.png")
        Path("folder").symlink_to(".")
        for output in ("soft.png", "hard.png", "folder/a.png", "folder"):
            assert "is an input" in refusal(["a.png"], output)
        assert "is an input" in refusal(["soft.png"], "a.png")

    def test_an_input_that_another_would_replace(self) -> None:
        tree("in/a.jpg", "a.png")
        assert "a.png: is an input" in refusal(["in/a.jpg", "a.png"], ".", "png")

    def test_formats_and_suffixes(self) -> None:
        tree("a.png", "b.png")
        Path("file").touch()
        assert refusal(["a.png"], "out", "gif").startswith("format 'gif' is unknown; expected one of .bmp,")
        assert refusal(["a.png"], "out", "").startswith("format '' is unknown")
        assert refusal(["a.png"], "b.gif").startswith(
            "b.gif: suffix '.gif' is unknown; expected one of .bmp,"
        )
        assert "is not named as the format png" in refusal(["a.png"], "b.jpg", "png")
        assert refusal(["a.png"], "file").startswith("file: is a file; expected a folder")
        assert "holds one image, but 2 are given" in refusal(["a.png", "b.png"], "c.png")
        assert "holds one image, but 2 are given" in refusal(["."], "-")

    def test_dash(self) -> None:
        tree("a.png")
        Path("out").mkdir()
        assert refusal(["-", "a.png"], "out").startswith("- (standard input) goes alone")
        assert refusal(["-", "-"]).startswith("- (standard input) goes alone")
        for output in ("out", "new/", "new"):
            assert "standard input has no name" in refusal(["-"], output)
        assert "suffix '.gif' is unknown" in refusal(["-"], "a.gif")

    def test_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tree("a.png")
        monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
        for inputs, output in ((["-"], None), (["-"], "-"), (["a.png"], "-")):
            assert "standard output is a terminal" in refusal(inputs, output)
        assert len(plan(["-"], "b.png")) == 1


class TestRun:
    def test_every_photo_is_restored(self) -> None:
        tree("in/a.png", "in/sub/b.bmp", "in/c.tif")
        restorer, log = Inverter(), Log()
        jobs = plan(["in"], "out")
        assert run(jobs, restorer, log) == 0
        assert log.jobs == jobs
        assert log.errors == [None] * 3
        for job, seen in zip(jobs, restorer.seen, strict=True):
            assert job.source is not None
            assert job.target is not None
            np.testing.assert_array_equal(seen, read_image(job.source))
            np.testing.assert_array_equal(read_image(job.target), 255 - read_image(job.source))

    def test_where_case_does_not_count_no_result_replaces_another(self) -> None:
        tree("in/A.png", "in/a.png")
        jobs = plan(["in"], "out")
        Path("out").mkdir()
        write_image(Path("out/a.png"), photo(1))
        Path("out/A.png").symlink_to("a.png")  # one file by two names, as on such a disk
        log = Log()
        assert run(jobs, Inverter(), log) == 1
        assert "would be written over the result of another photo" in str(log.errors[1])
        assert (read_image(Path("out/a.png")) == 255 - read_image(Path("in/A.png"))).all()

    @given(height=st.integers(1, 40), width=st.integers(1, 40))
    def test_any_size(self, height: int, width: int) -> None:
        write_image(Path("a.png"), photo(7, height, width))
        assert run(plan(["a.png"], "b.png"), Inverter(), Log()) == 0
        np.testing.assert_array_equal(read_image(Path("b.png")), photo(248, height, width))

    def test_a_bad_file_does_not_stop_the_rest(self) -> None:
        tree("in/a.png", "in/b.png", "in/c.png", "in/d.png", "in/e.png")
        Path("in/b.png").write_bytes(Path("in/b.png").read_bytes()[:50])
        Path("in/d.png").write_text("text")
        before = {name: Path(name).read_bytes() for name in files()}
        jobs, log = plan(["in"], "out"), Log()
        Path("in/e.png").unlink()  # gone after planning
        assert run(jobs, Inverter(), log) == 3
        assert [error is None for error in log.errors] == [True, False, True, False, False]
        assert all(isinstance(error, ImageError) for error in log.errors if error)
        assert "b.png: cannot be decoded" in str(log.errors[1])
        assert files() == ["in/a.png", "in/b.png", "in/c.png", "in/d.png", "out/a.png", "out/c.png"]
        assert all(Path(name).read_bytes() == data for name, data in before.items() if Path(name).exists())

    def test_a_name_that_leaves_no_room_for_its_results_does_not_stop_the_rest(self) -> None:
        tree("a.png", f"{'b' * 248}.png", "c.png")
        log = Log()
        assert run(plan(["."], None), Inverter(), log) == 1
        assert "cannot be written (File name too long)" in str(log.errors[1])
        assert {"a_restored.png", "c_restored.png"} < set(files())

    @pytest.mark.parametrize("kind", [RuntimeError, MemoryError, UserError])
    def test_a_photo_that_the_restorer_cannot_do(self, kind: type[Exception]) -> None:
        tree("a.png", "b.png", "c.png")
        log = Log()
        restorer = Inverter(lambda image: kind("out of\nmemory") if image[0, 0, 0] == 1 else None)
        assert run(plan(["*.png"], "out"), restorer, log) == 1
        assert str(log.errors[1]) == "b.png: 5x3 pixels could not be restored (out of memory)"
        assert isinstance(log.errors[1].__cause__, kind) if log.errors[1] else False
        assert files() == ["a.png", "b.png", "c.png", "out/a.png", "out/c.png"]

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, AssertionError, TypeError])
    def test_interrupts_and_bugs_pass_through(self, kind: type[Exception]) -> None:
        tree("a.png", "b.png")
        with pytest.raises(kind):
            run(plan(["*.png"], "out"), Inverter(lambda image: kind() if image[0, 0, 0] else None), Log())
        assert files() == ["a.png", "b.png", "out/a.png"]

    def test_destination_that_cannot_be_written(self) -> None:
        tree("a.png", "b.png", "file")
        log = Log()
        assert run(plan(["a.png", "b.png"], "file/out"), Inverter(), log) == 2
        assert str(log.errors[0]).startswith("file/out/a.png: cannot be written (")
        assert files() == ["a.png", "b.png", "file"]

    def test_an_existing_output_is_replaced_only_by_a_whole_one(self) -> None:
        tree("in/a.png", "in/b.png", "out/a.png", "out/b.png")
        old = Path("out/b.png").read_bytes()
        Path("in/b.png").write_text("text")
        assert run(plan(["in"], "out"), Inverter(), Log()) == 1
        np.testing.assert_array_equal(read_image(Path("out/a.png")), photo(255))
        assert Path("out/b.png").read_bytes() == old

    def test_alpha_passes_around_the_restorer(self) -> None:
        alpha = np.arange(15, dtype=np.uint8).reshape(3, 5)
        write_photo(Path("a.png"), Photo(photo(10), alpha))
        restorer = Inverter()
        assert run(plan(["a.png"], "out"), restorer, Log()) == 0
        np.testing.assert_array_equal(restorer.seen[0], photo(10))
        restored = read_photo(Path("out/a.png"))
        assert restored.alpha is not None
        np.testing.assert_array_equal(restored.alpha, alpha)
        np.testing.assert_array_equal(restored.pixels, photo(245))

    def test_the_restorer_sees_upright_photos(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(photo()).save("a.jpg", exif=exif)
        restorer = Inverter()
        run(plan(["a.jpg"], "b.jpg"), restorer, Log())
        assert restorer.seen[0].shape == (5, 3, 3)
        assert read_image(Path("b.jpg")).shape == (5, 3, 3)

    def test_large_photos_print_no_warning(
        self, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
    ) -> None:
        tree("a.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # 15 pixels: a warning; from 20 on an error
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert run(plan(["a.png"], "b.png"), Inverter(), Log()) == 0
        assert not recwarn.list
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
        log = Log()
        assert run(plan(["a.png"], "b.png"), Inverter(), log) == 1
        assert "has more than 10 pixels" in str(log.errors[0])

    def test_every_photo_is_warned_about_by_its_name(self) -> None:
        class Tiled(Inverter):
            def restore(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
                warnings.warn("restored in tiles", stacklevel=1)
                return super().restore(image)

        tree("a.png", "b.png")
        with pytest.warns(UserWarning) as seen:
            run(plan(["a.png", "b.png"], "out"), Tiled(), Log())
        assert [str(w.message) for w in seen] == ["a.png: restored in tiles", "b.png: restored in tiles"]


class TestStreams:
    @pytest.fixture
    def streams(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], io.BytesIO]:
        def install(data: bytes) -> io.BytesIO:
            out = io.BytesIO()
            monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
            monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=out, isatty=lambda: False))
            return out

        return install

    def png(self) -> bytes:
        stream = io.BytesIO()
        write_photo(stream, Photo(photo(10)))
        return stream.getvalue()

    @pytest.mark.parametrize("output", [None, "-"])
    @pytest.mark.parametrize(
        ("format", "kind"), [(None, "PNG"), ("png", "PNG"), ("jpg", "JPEG"), ("TIFF", "TIFF")]
    )
    def test_through(
        self, streams: Callable[[bytes], io.BytesIO], output: str | None, format: str | None, kind: str
    ) -> None:
        out, log = streams(self.png()), Log()
        jobs = plan(["-"], output, format)
        assert jobs == [Job(None, None, kind)]
        assert run(jobs, Inverter(), log) == 0
        assert str(log.jobs[0]) == "standard input"
        out.seek(0)
        with Image.open(out) as image:
            assert image.format == kind
            assert np.abs(np.asarray(image).astype(int) - 245).max() <= 2

    def test_to_a_file(self, streams: Callable[[bytes], io.BytesIO]) -> None:
        out = streams(self.png())
        assert run(plan(["-"], "out/b.bmp"), Inverter(), Log()) == 0
        np.testing.assert_array_equal(read_image(Path("out/b.bmp")), photo(245))
        assert out.getvalue() == b""

    def test_from_a_file(self, streams: Callable[[bytes], io.BytesIO]) -> None:
        tree("a.bmp")
        out = streams(b"")
        assert run(plan(["a.bmp"], "-"), Inverter(), Log()) == 0
        assert out.getvalue().startswith(b"BM")

    @pytest.mark.parametrize("data", [b"", b"hello"])
    def test_bad_input_writes_nothing(self, streams: Callable[[bytes], io.BytesIO], data: bytes) -> None:
        out, log = streams(data), Log()
        assert run(plan(["-"], None), Inverter(), log) == 1
        assert str(log.errors[0]).startswith("standard input: ")
        assert out.getvalue() == b""

    def test_real_pipes(self) -> None:
        script = (
            "from mirl_sparse.photos.jobs import plan, run\n"
            "class R:\n"
            "    def restore(self, image): return 255 - image\n"
            "raise SystemExit(run(plan(['-'], '-'), R(), lambda *_: None))"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        done = subprocess.run(
            [sys.executable, "-c", script],
            input=self.png(),
            capture_output=True,
            env=environment,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        np.testing.assert_array_equal(read_image(io.BytesIO(done.stdout)), photo(245))
