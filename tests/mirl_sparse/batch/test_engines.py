"""Workers as processes: they are replaced, they end with their driver, and nothing is half-written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from batches import make_photo, rows, settings
from PIL import Image

from mirl_sparse.batch.dispatch import Dispatcher
from mirl_sparse.batch.feed import Feed
from mirl_sparse.batch.local import LocalPool
from mirl_sparse.batch.report import Status
from mirl_sparse.batch.run import Batch, Selection
from mirl_sparse.batch.worker import Task
from mirl_sparse.errors import UserError
from mirl_sparse.photos import Manner

pytestmark = pytest.mark.usefixtures("here")
CODE = "from mirl_sparse.cli.app import main; main()"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(holds, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_worker_is_replaced_and_its_photo_done():
    for name in ("a.png", "b.png", "c.png"):
        make_photo(Path("in", name))
    batch, pools = Batch(settings("in", "out"), Selection()), []

    class Fragile(LocalPool):
        def send(self, worker, task):
            if task.key == "b.png" and not pools:
                pools.append(worker)
                os.kill(worker.process.pid, signal.SIGKILL)
                worker.process.join()
            super().send(worker, task)

    assert batch.run(lambda: Fragile(batch.settings, 1), timeout=60, is_quiet=True).counts == {Status.DONE: 3}
    assert pools
    assert not any(alive(worker.process.pid) for worker in pools)


def test_a_photo_that_takes_too_long_fails_and_its_worker_is_replaced():
    make_photo(Path("in/a.png"))
    Image.fromarray(np.zeros((3000, 3000, 3), np.uint8)).save("in/large.png")
    batch = Batch(settings("in", "out", manner=Manner(1)), Selection())
    tally = batch.run(lambda: LocalPool(batch.settings, 1), timeout=2, is_quiet=True)
    assert tally.counts == {Status.DONE: 1, Status.FAILED: 1}
    assert rows("out")["large.png"]["error"] == "large.png: took longer than 2 s (--timeout)"


def test_a_ticket_that_cannot_be_loaded_ends_the_run():
    make_photo(Path("in/a.png"))
    Path("bad.mirl").write_bytes(b"no program")
    batch = Batch(settings("in", "out", ticket="bad.mirl"), Selection())
    with pytest.raises(UserError, match=r"bad\.mirl"):
        batch.run(lambda: LocalPool(batch.settings, 1), timeout=60, is_quiet=True)


def test_workers_that_die_as_they_start_end_the_run():
    class Stillborn(LocalPool):
        def launch(self):
            worker = super().launch()
            worker.process.kill()
            return worker

    job = settings("in", "out")
    pool = Stillborn(job, 1)
    with pytest.raises(UserError, match=r"workers end before they are ready \(SIGKILL"):
        list(Dispatcher(pool, Feed(iter([Task("a.png")])), 60).run())
    pool.close()


def start(*more: str) -> subprocess.Popen:
    command = [sys.executable, "-c", CODE, "batch", "in", "out", "--workers", "1", *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def results() -> int:
    return len(list(Path("out").glob("*.png")))


@pytest.fixture
def twenty_photos(here):
    pixels = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)
    Path("in").mkdir()
    for number in range(20):
        Image.fromarray(pixels).save(f"in/{number:02}.png")


@pytest.mark.usefixtures("twenty_photos")
def test_a_signal_stops_a_run_which_reports_what_is_done_and_goes_on():
    running = start()
    wait_until(lambda: results() >= 2)
    running.send_signal(signal.SIGTERM)
    said = running.communicate(timeout=60)[1].splitlines()
    assert running.returncode == 130
    assert said[-1].endswith("done; the same command goes on")
    done = results()
    assert 2 <= done < 20
    assert len(rows("out")) == done
    assert os.listdir("out/_mirl/unfinished") == []
    again = start()
    assert f"{20 - done} done, {done} up to date" in again.communicate(timeout=120)[1]
    assert again.returncode == 0
    assert results() == 20


@pytest.mark.usefixtures("twenty_photos")
def test_workers_end_when_their_driver_is_killed():
    running = start()
    wait_until(lambda: results() >= 1)
    tasks = Path(f"/proc/{running.pid}/task").iterdir()
    children = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    assert children
    running.kill()
    running.communicate()
    wait_until(lambda: not any(map(alive, children)))
    for path in Path("out").glob("*.png"):
        assert Image.open(path).size == (160, 160)
