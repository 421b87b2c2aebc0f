"""Photos are restored one by one; what fails does not stop the rest, and bugs pass through."""

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
from pictures import files, list_jobs, make_files, plain
from PIL import Image

from mirl_sparse.errors import UserError
from mirl_sparse.photos import (
    ImageError,
    Job,
    Jobs,
    Photo,
    batches,
    read_image,
    read_photo,
    run_jobs,
    write_image,
    write_photo,
)

pytestmark = pytest.mark.usefixtures("here")
RGB = NDArray[np.uint8]


class Inverter:
    """Inverts colours, remembers what it was given, and fails on demand."""

    def __init__(self, fail: Callable[[RGB], Exception | None] = lambda image: None) -> None:
        self.seen: list[RGB] = []
        self.fail = fail

    def restore(self, image: RGB, strength: float) -> RGB:
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


class TestRun:
    def test_every_photo_is_restored(self) -> None:
        make_files("in/a.png", "in/sub/b.bmp", "in/c.tif")
        restorer, log = Inverter(), Log()
        jobs = list_jobs(["in"], "out")
        assert run_jobs(jobs, restorer, log) == 0
        assert log.jobs == jobs
        assert log.errors == [None] * 3
        for job, seen in zip(jobs, restorer.seen, strict=True):
            assert job.source is not None
            assert job.target is not None
            np.testing.assert_array_equal(seen, read_image(job.source))
            np.testing.assert_array_equal(read_image(job.target), 255 - read_image(job.source))

    def test_where_case_does_not_count_no_result_replaces_another(self) -> None:
        make_files("in/A.png", "in/a.png")
        jobs = list_jobs(["in"], "out")
        Path("out").mkdir()
        write_image(Path("out/a.png"), plain(1))
        Path("out/A.png").symlink_to("a.png")  # one file by two names, as on such a disk
        log = Log()
        assert run_jobs(jobs, Inverter(), log) == 1
        assert "would be written over the result of another photo" in str(log.errors[1])
        assert (read_image(Path("out/a.png")) == 255 - read_image(Path("in/A.png"))).all()

    @given(height=st.integers(1, 40), width=st.integers(1, 40))
    def test_any_size(self, height: int, width: int) -> None:
        write_image(Path("a.png"), plain(7, height, width))
        assert run_jobs(list_jobs(["a.png"], "b.png"), Inverter(), Log()) == 0
        np.testing.assert_array_equal(read_image(Path("b.png")), plain(248, height, width))

    def test_a_bad_file_does_not_stop_the_rest(self) -> None:
        make_files("in/a.png", "in/b.png", "in/c.png", "in/d.png", "in/e.png")
        Path("in/b.png").write_bytes(Path("in/b.png").read_bytes()[:50])
        Path("in/d.png").write_text("text")
        before = {name: Path(name).read_bytes() for name in files()}
        jobs, log = list_jobs(["in"], "out"), Log()
        Path("in/e.png").unlink()  # gone after planning
        assert run_jobs(jobs, Inverter(), log) == 3
        assert [error is None for error in log.errors] == [True, False, True, False, False]
        assert all(isinstance(error, ImageError) for error in log.errors if error)
        assert "b.png: cannot be decoded" in str(log.errors[1])
        assert files() == ["in/a.png", "in/b.png", "in/c.png", "in/d.png", "out/a.png", "out/c.png"]
        assert all(Path(name).read_bytes() == data for name, data in before.items() if Path(name).exists())

    def test_a_name_that_leaves_no_room_for_its_results_does_not_stop_the_rest(self) -> None:
        make_files("a.png", f"{'b' * 248}.png", "c.png")
        log = Log()
        assert run_jobs(list_jobs(["."], None), Inverter(), log) == 1
        assert "cannot be written (File name too long)" in str(log.errors[1])
        assert {"a_restored.png", "c_restored.png"} < set(files())

    @pytest.mark.parametrize("kind", [RuntimeError, MemoryError, UserError])
    def test_a_photo_that_the_restorer_cannot_do(self, kind: type[Exception]) -> None:
        make_files("a.png", "b.png", "c.png")
        log = Log()
        restorer = Inverter(lambda image: kind("out of\nmemory") if image[0, 0, 0] == 1 else None)
        assert run_jobs(list_jobs(["*.png"], "out"), restorer, log) == 1
        assert str(log.errors[1]) == "b.png: 5x3 pixels could not be restored (out of memory)"
        assert isinstance(log.errors[1].__cause__, kind) if log.errors[1] else False
        assert files() == ["a.png", "b.png", "c.png", "out/a.png", "out/c.png"]

    @pytest.mark.parametrize("step", ["read_photo", "write_photo"])
    def test_a_photo_too_large_for_the_memory(self, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
        make_files("a.png", "b.png", "c.png")
        real, calls = getattr(batches, step), iter(range(3))

        def run(*arguments: object) -> object:
            if next(calls) == 1:
                raise MemoryError
            return real(*arguments)

        monkeypatch.setattr(batches, step, run)
        log = Log()
        assert run_jobs(list_jobs(["*.png"], "out"), Inverter(), log) == 1
        assert str(log.errors[1]) == "b.png: cannot be read or written (not enough memory)"
        assert files() == ["a.png", "b.png", "c.png", "out/a.png", "out/c.png"]

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, AssertionError, TypeError])
    def test_interrupts_and_bugs_pass_through(self, kind: type[Exception]) -> None:
        make_files("a.png", "b.png")
        with pytest.raises(kind):
            run_jobs(
                list_jobs(["*.png"], "out"), Inverter(lambda image: kind() if image[0, 0, 0] else None), Log()
            )
        assert files() == ["a.png", "b.png", "out/a.png"]

    def test_results_beside_photos_are_not_restored_again_below_another_input(self) -> None:
        make_files("in/sub/a.png", "in/b.png")
        log = Log()
        assert run_jobs(Jobs(["in/sub", "in"], None), Inverter(), log) == 0
        assert [str(job.source) for job in log.jobs] == ["in/sub/a.png", "in/b.png"]

    def test_destination_that_cannot_be_written(self) -> None:
        make_files("a.png", "b.png", "file")
        log = Log()
        assert run_jobs(list_jobs(["a.png", "b.png"], "file/out"), Inverter(), log) == 2
        assert str(log.errors[0]).startswith("file/out/a.png: cannot be written (")
        assert files() == ["a.png", "b.png", "file"]

    def test_an_existing_output_is_replaced_only_by_a_whole_one(self) -> None:
        make_files("in/a.png", "in/b.png", "out/a.png", "out/b.png")
        old = Path("out/b.png").read_bytes()
        Path("in/b.png").write_text("text")
        assert run_jobs(list_jobs(["in"], "out"), Inverter(), Log()) == 1
        np.testing.assert_array_equal(read_image(Path("out/a.png")), plain(255))
        assert Path("out/b.png").read_bytes() == old

    def test_alpha_passes_around_the_restorer(self) -> None:
        alpha = np.arange(15, dtype=np.uint8).reshape(3, 5)
        write_photo(Path("a.png"), Photo(plain(10), alpha))
        restorer = Inverter()
        assert run_jobs(list_jobs(["a.png"], "out"), restorer, Log()) == 0
        np.testing.assert_array_equal(restorer.seen[0], plain(10))
        restored = read_photo(Path("out/a.png"))
        assert restored.alpha is not None
        np.testing.assert_array_equal(restored.alpha, alpha)
        np.testing.assert_array_equal(restored.pixels, plain(245))

    def test_the_restorer_sees_upright_photos(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(plain()).save("a.jpg", exif=exif)
        restorer = Inverter()
        run_jobs(list_jobs(["a.jpg"], "b.jpg"), restorer, Log())
        assert restorer.seen[0].shape == (5, 3, 3)
        assert read_image(Path("b.jpg")).shape == (5, 3, 3)

    def test_large_photos_print_no_warning(
        self, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
    ) -> None:
        make_files("a.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # 15 pixels: a warning; from 20 on an error
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert run_jobs(list_jobs(["a.png"], "b.png"), Inverter(), Log()) == 0
        assert not recwarn.list
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
        log = Log()
        assert run_jobs(list_jobs(["a.png"], "b.png"), Inverter(), log) == 1
        assert "has more than 10 pixels" in str(log.errors[0])

    def test_every_photo_is_warned_about_by_its_name(self) -> None:
        class Tiled(Inverter):
            def restore(self, image: NDArray[np.uint8], strength: float) -> NDArray[np.uint8]:
                warnings.warn("restored in tiles", stacklevel=1)
                return super().restore(image, strength)

        make_files("a.png", "b.png")
        with pytest.warns(UserWarning) as seen:
            run_jobs(list_jobs(["a.png", "b.png"], "out"), Tiled(), Log())
        assert [str(w.message) for w in seen] == ["a.png: restored in tiles", "b.png: restored in tiles"]

    def test_beside_runs_twice_with_the_same_result(self) -> None:
        make_files("in/a.png", "in/sub/b.jpg", "in/other_restored.png")
        expected = {
            "in/a.png": "in/a_restored.png",
            "in/sub/b.jpg": "in/sub/b_restored.jpg",
            # Its source is not there: it is a photo like any other.
            "in/other_restored.png": "in/other_restored_restored.png",
        }
        for _ in range(2):
            jobs = list_jobs(["in"], None)
            assert {str(job.source): str(job.target) for job in jobs} == expected
            assert run_jobs(jobs, Inverter(), Log()) == 0
        assert len(files()) == 6


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
        write_photo(stream, Photo(plain(10)))
        return stream.getvalue()

    @pytest.mark.parametrize("output", [None, "-"])
    @pytest.mark.parametrize(
        ("format", "kind"), [(None, "PNG"), ("png", "PNG"), ("jpg", "JPEG"), ("TIFF", "TIFF")]
    )
    def test_through(
        self, streams: Callable[[bytes], io.BytesIO], output: str | None, format: str | None, kind: str
    ) -> None:
        out, log = streams(self.png()), Log()
        jobs = list_jobs(["-"], output, format)
        assert jobs == [Job(None, None, kind)]
        assert run_jobs(jobs, Inverter(), log) == 0
        assert str(log.jobs[0]) == "standard input"
        out.seek(0)
        with Image.open(out) as image:
            assert image.format == kind
            assert np.abs(np.asarray(image).astype(int) - 245).max() <= 2

    def test_to_a_file(self, streams: Callable[[bytes], io.BytesIO]) -> None:
        out = streams(self.png())
        assert run_jobs(list_jobs(["-"], "out/b.bmp"), Inverter(), Log()) == 0
        np.testing.assert_array_equal(read_image(Path("out/b.bmp")), plain(245))
        assert out.getvalue() == b""

    def test_from_a_file(self, streams: Callable[[bytes], io.BytesIO]) -> None:
        make_files("a.bmp")
        out = streams(b"")
        assert run_jobs(list_jobs(["a.bmp"], "-"), Inverter(), Log()) == 0
        assert out.getvalue().startswith(b"BM")

    @pytest.mark.parametrize("data", [b"", b"hello"])
    def test_bad_input_writes_nothing(self, streams: Callable[[bytes], io.BytesIO], data: bytes) -> None:
        out, log = streams(data), Log()
        assert run_jobs(list_jobs(["-"], None), Inverter(), log) == 1
        assert str(log.errors[0]).startswith("standard input: ")
        assert out.getvalue() == b""

    def test_real_pipes(self) -> None:
        script = (
            "from mirl_sparse.photos import Jobs, run_jobs\n"
            "class R:\n"
            "    def restore(self, image, strength): return 255 - image\n"
            "raise SystemExit(run_jobs(Jobs(['-'], '-'), R(), lambda *_: None))"
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
        np.testing.assert_array_equal(read_image(io.BytesIO(done.stdout)), plain(245))
