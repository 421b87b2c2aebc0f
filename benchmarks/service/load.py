"""Send photos to a service: as fast as it answers, or at a rate of ours."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from io import BytesIO

import numpy as np
from PIL import Image

from benchmarks.service.running import Running

# Width and height of the photos, and how often each comes: thumbnails to 0.3 megapixels.
SIZES = {(160, 120): 3, (256, 256): 3, (320, 240): 2, (480, 360): 2, (640, 480): 1}
_CLIENT_SECONDS = 300  # until a client takes a service for dead
_MOST_CLIENTS = 512


@dataclass(frozen=True)
class Photo:
    """Hold a photo as it is sent.

    Attributes:
        data: Its file.
        size: Width and height.
    """

    data: bytes
    size: tuple[int, int]


@dataclass(frozen=True)
class Answer:
    """Say what became of a request.

    Attributes:
        status: Its status; 0 if there was no whole answer, or not the photo.
        seconds: From the time when it was due to the end of the answer.
        fault: What went wrong; empty if nothing did.
    """

    status: int
    seconds: float
    fault: str = ""


def make_photos(count: int, seed: int = 0) -> list[Photo]:
    """Return noisy photos of mixed sizes, as JPEG and PNG."""
    generator, dice = np.random.default_rng(seed), random.Random(seed)
    sizes = dice.choices(list(SIZES), list(SIZES.values()), k=count)
    photos = []
    for i, (width, height) in enumerate(sizes):
        y, x = np.mgrid[:height, :width]
        waves = np.stack([np.sin(x / 17), np.cos(y / 13), np.sin((x + y) / 29)], -1)
        pixels = (128 + 80 * waves + generator.normal(0, 20, waves.shape)).clip(0, 255).astype(np.uint8)
        stream = BytesIO()
        Image.fromarray(pixels).save(stream, "PNG" if i % 4 == 0 else "JPEG")
        photos.append(Photo(stream.getvalue(), (width, height)))
    return photos


def send(service: Running, photo: Photo, due: float) -> Answer:
    """Send a photo, and check that the answer is one of the same size."""
    connection = HTTPConnection(service.host, service.port, timeout=_CLIENT_SECONDS)
    try:
        connection.request("POST", "/restore", photo.data)
        response = connection.getresponse()
        data = response.read()
    except (OSError, HTTPException) as error:
        return Answer(0, time.perf_counter() - due, repr(error))
    finally:
        connection.close()
    seconds = time.perf_counter() - due
    if response.status == 200:
        with Image.open(BytesIO(data)) as image:
            if image.size != photo.size:
                return Answer(0, seconds, f"{image.size} came back for {photo.size}")
        return Answer(200, seconds)
    is_refusal = response.status == 429
    return Answer(response.status, seconds, "" if is_refusal else data.decode(errors="replace"))


def closed_loop(service: Running, photos: Sequence[Photo], clients: int, seconds: float) -> list[Answer]:
    """Let each of some clients send a photo as soon as its last one is answered."""
    begin = time.perf_counter()

    def client(number: int) -> list[Answer]:
        answers: list[Answer] = []
        for i in range(number, 1 << 30, clients):
            if (now := time.perf_counter()) - begin > seconds:
                return answers
            answers.append(send(service, photos[i % len(photos)], now))
        return answers

    with ThreadPoolExecutor(clients) as pool:
        return [answer for answers in pool.map(client, range(clients)) for answer in answers]


def open_loop(service: Running, photos: Sequence[Photo], rate: float, seconds: float) -> list[Answer]:
    """Send photos at random times, whether earlier ones are answered or not.

    Args:
        service: The service.
        photos: What is sent, in turns.
        rate: Photos per second, in the mean; the times are those of a Poisson process.
        seconds: How long to send. All answers are awaited.
    """
    dice, due = random.Random(1), time.perf_counter()
    answers: list[Future[Answer]] = []
    end = due + seconds
    with ThreadPoolExecutor(_MOST_CLIENTS) as pool:
        for i in range(1 << 30):
            due += dice.expovariate(rate)
            if due > end:
                break
            time.sleep(max(0, due - time.perf_counter()))
            answers.append(pool.submit(send, service, photos[i % len(photos)], due))
    return [answer.result() for answer in answers]


class MemoryWatch:
    """Note now and then how much memory a service takes.

    Args:
        service: The service.
        period: Seconds from one look to the next.

    Attributes:
        samples: Seconds since the start, and bytes.
    """

    def __init__(self, service: Running, period: float = 0.5) -> None:
        self.samples: list[tuple[float, float]] = []
        self._service, self._period, self._end = service, period, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        begin = time.perf_counter()
        while not self._end.wait(self._period):
            self.samples.append((time.perf_counter() - begin, self._service.resident_bytes()))
