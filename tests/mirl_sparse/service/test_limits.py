"""What is refused, before it costs more than it may, and what becomes of the rest."""

import asyncio
import re
import time

import pytest
from asgi import ask, parts
from services import LOOPBACK, encoded

from mirl_sparse.errors import UserError
from mirl_sparse.photos import Manner
from mirl_sparse.service import Limits, Service, make_app
from mirl_sparse.service.queue import Queue
from mirl_sparse.service.refusals import Refusal
from mirl_sparse.service.work import Order

PHOTO = encoded()
FORM = {"Content-Type": "multipart/form-data; boundary=line"}


async def settled(condition):
    """Wait until something is true."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


async def begun(restorer):
    """Wait until a photo is worked on."""
    await asyncio.to_thread(restorer.begun.acquire, timeout=60)


async def endless(first=b""):
    yield first
    await asyncio.Event().wait()


def held_bytes(service):
    return float(re.search(rb"^mirl_sparse_held_bytes (\S+)", service.metrics.text(), re.MULTILINE)[1])


def test_a_length_that_is_too_large_is_refused_before_anything_is_read(held):
    _, app, _ = held(photo_bytes=1000)
    answer = asyncio.run(ask(app, "/restore", endless(), {"Content-Length": "1001"}))
    assert answer.status == 413
    assert answer.detail.startswith("the photo has more than 1,000 bytes")


def test_a_body_of_unknown_length_is_read_no_further_than_allowed(held):
    service, app, _ = held(photo_bytes=1000)
    read = 0

    async def body():
        nonlocal read
        for _ in range(100):
            read += 1
            yield bytes(400)

    for headers in ({}, {"Content-Length": "10"}, {"Content-Length": "many"}):
        read = 0
        assert asyncio.run(ask(app, "/restore", body(), headers)).status == 413
        assert read == 3
    assert held_bytes(service) == 0


def test_the_file_of_a_form_counts_not_the_form(held):
    _, app, restorer = held(photo_bytes=len(PHOTO))
    restorer.is_held = False
    head = b'--line\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    for data, status in ((PHOTO, 200), (PHOTO + b"\0", 413)):
        answer = asyncio.run(ask(app, "/restore", head + data + b"\r\n--line--\r\n", FORM))
        assert answer.status == status


@pytest.mark.parametrize("headers", [{}, FORM])
def test_a_photo_that_comes_too_slowly_is_refused(held, headers):
    service, app, _ = held(transfer_seconds=0.05)
    answer = asyncio.run(ask(app, "/restore", endless(b"--line\r\n"), headers))
    assert answer.status == 408
    assert answer.headers["connection"] == "close"
    assert held_bytes(service) == 0


def test_an_answer_that_is_not_taken_is_let_go_of(held):
    service, app, restorer = held(transfer_seconds=0.1)
    restorer.is_held = False

    async def run():
        answer = await ask(app, "/restore", PHOTO, taking=asyncio.Event())
        assert (answer.status, answer.body) == (200, b"")

    asyncio.run(run())
    assert held_bytes(service) == 0
    assert b'requests_total{status="499"} 1.0' in service.metrics.text()


def test_all_photos_together_take_no_more_memory_than_allowed(held):
    service, app, restorer = held(photo_bytes=len(PHOTO), held_bytes=int(1.5 * len(PHOTO)))

    async def run():
        first = asyncio.ensure_future(ask(app, "/restore", PHOTO))
        await begun(restorer)
        assert held_bytes(service) == len(PHOTO)
        second = await ask(app, "/restore", parts(*(PHOTO[i : i + 100] for i in range(0, len(PHOTO), 100))))
        assert (second.status, second.headers["retry-after"]) == (429, "1")
        restorer.finish()
        assert (await first).status == 200
        assert held_bytes(service) == 0

    asyncio.run(run())


def test_photos_that_find_the_queue_full_are_refused_and_all_others_answered(held):
    service, app, restorer = held(waiting=2)

    async def run():
        accepted = [asyncio.ensure_future(ask(app, "/restore", PHOTO)) for _ in range(3)]
        await begun(restorer)
        await settled(lambda: service.queue.waiting == 2)
        refused = await ask(app, "/restore", endless())  # its body is not even read
        assert refused.status == 429
        assert refused.detail.startswith("2 photos wait already")
        assert int(refused.headers["retry-after"]) >= 1
        restorer.finish(3)
        assert [answer.status for answer in await asyncio.gather(*accepted)] == [200] * 3
        restorer.finish()
        assert (await ask(app, "/restore", PHOTO)).status == 200

    asyncio.run(run())


def test_a_photo_is_refused_if_the_work_ahead_takes_too_long(held):
    _, _, restorer = held()
    order = Order(PHOTO, "photo", "PNG", Manner())

    async def run():
        queue = Queue([restorer], Limits(wait_seconds=10), pixels=1000, seconds=1)
        work = [asyncio.ensure_future(queue.restore(order, pixels)) for pixels in (6000, 5000, 90_000)]
        await begun(restorer)
        # When the second came, 6 s were ahead; when the third came, 11 s.
        with pytest.raises(Refusal) as refused:
            await work[2]
        assert refused.value.status_code == 429
        assert refused.value.headers["Retry-After"] == "1"
        restorer.finish(2)
        await asyncio.gather(*work[:2])
        queue.break_off()

    asyncio.run(run())


def test_the_pace_is_that_of_the_latest_photos(held):
    _, _, restorer = held()
    restorer.is_held = False
    order = Order(PHOTO, "photo", "PNG", Manner())

    async def run():
        queue = Queue([restorer], Limits(), pixels=1, seconds=1000)
        for _ in range(100):
            await queue.restore(order, 24 * 32)
        assert queue._pace.seconds(24 * 32) < 5
        queue.break_off()

    asyncio.run(run())


@pytest.mark.parametrize("is_waiting", [False, True])
def test_a_photo_that_takes_too_long_is_given_up(held, is_waiting):
    service, app, restorer = held(work_seconds=0.1)

    async def run():
        if is_waiting:
            first = asyncio.ensure_future(ask(app, "/restore", PHOTO))
            await begun(restorer)
        answer = await ask(app, "/restore", PHOTO)
        assert answer.status == 504
        assert answer.detail.startswith("the photo was not restored within 0.1 s")
        assert service.queue.waiting == 0
        if is_waiting:
            assert (await first).status == 504
        restorer.finish()  # what cannot be stopped ends, and the worker is free again
        await settled(lambda: service.queue.running == 0)
        restorer.is_held = False
        assert (await ask(app, "/restore", PHOTO)).status == 200

    asyncio.run(run())


def test_a_client_that_leaves_takes_its_photo_out_of_the_queue(held):
    service, app, restorer = held()

    async def run():
        first, gone = asyncio.ensure_future(ask(app, "/restore", PHOTO)), asyncio.Event()
        await begun(restorer)
        second = asyncio.ensure_future(ask(app, "/restore", PHOTO, gone=gone))
        await settled(lambda: service.queue.waiting == 1)
        gone.set()
        await second
        assert service.queue.waiting == 0
        restorer.finish()
        assert (await first).status == 200

    asyncio.run(run())
    assert b'requests_total{status="499"} 1.0' in service.metrics.text()
    assert held_bytes(service) == 0


def test_a_client_that_leaves_stops_the_work_in_the_middle(restorer):
    service = Service([restorer], Limits())
    app = make_app(service, LOOPBACK)
    shares = []
    restore = restorer.restore

    def watched(image, strength, progress):
        def note(done):
            shares.append(done)
            progress(done)

        return restore(image, strength, note)

    restorer.restore = watched

    async def run():
        gone = asyncio.Event()
        work = asyncio.ensure_future(ask(app, "/restore", encoded(300, 300), gone=gone))
        await settled(lambda: shares)
        gone.set()
        await work
        await settled(lambda: service.queue.running == 0)

    asyncio.run(run())
    assert 0 < shares[-1] < 1


@pytest.mark.parametrize("headers", [{}, FORM])
def test_a_client_that_leaves_while_it_sends_is_no_error(held, headers):
    service, app, _ = held()

    async def run():
        gone = asyncio.Event()
        work = asyncio.ensure_future(ask(app, "/restore", endless(b"--line\r\n"), headers, gone))
        await settled(lambda: held_bytes(service) > 0)
        gone.set()
        await work

    asyncio.run(run())
    assert held_bytes(service) == 0
    assert b'requests_total{status="499"} 1.0' in service.metrics.text()


def test_while_the_service_stops_accepted_photos_are_finished_and_new_ones_refused(held):
    service, app, restorer = held()

    async def run():
        accepted = [asyncio.ensure_future(ask(app, "/restore", PHOTO)) for _ in range(3)]
        await begun(restorer)
        await settled(lambda: service.queue.waiting == 2)
        assert (await ask(app, "/ready")).status == 200
        stopping = asyncio.ensure_future(service.queue.close(60))
        await settled(lambda: not service.queue.is_open)
        refused = await ask(app, "/restore", PHOTO)
        assert (refused.status, refused.detail) == (503, "the service stops; try again later")
        assert (await ask(app, "/ready")).status == 503
        assert (await ask(app, "/health")).status == 200
        restorer.finish(3)
        await stopping
        assert [answer.status for answer in await asyncio.gather(*accepted)] == [200] * 3

    asyncio.run(run())
    assert service.queue.broken_off == 0


def test_what_is_not_finished_in_time_is_answered_too(held):
    service, app, restorer = held()

    async def run():
        accepted = [asyncio.ensure_future(ask(app, "/restore", PHOTO)) for _ in range(2)]
        await begun(restorer)
        await settled(lambda: service.queue.waiting == 1)
        await service.queue.close(0.05)
        assert [answer.status for answer in await asyncio.gather(*accepted)] == [503] * 2
        restorer.finish()
        await settled(lambda: service.queue.running == 0)

    asyncio.run(run())
    assert service.queue.broken_off == 2


def test_two_workers_restore_two_photos_at_a_time(held):
    _, _, first = held()
    _, _, second = held()
    for restorer in (first, second):
        restorer.is_held = False
    service = Service([first, second], Limits())
    for restorer in (first, second):
        restorer.is_held = True
    app = make_app(service, LOOPBACK)

    async def run():
        work = [asyncio.ensure_future(ask(app, "/restore", PHOTO)) for _ in range(2)]
        await begun(first)
        await begun(second)
        first.finish()
        second.finish()
        assert [answer.status for answer in await asyncio.gather(*work)] == [200] * 2

    asyncio.run(run())


@pytest.mark.parametrize("limits", [{"waiting": 0}, {"wait_seconds": -1}, {"photo_bytes": 10**12}])
def test_limits_that_make_no_sense_are_refused(limits):
    with pytest.raises(UserError, match="expected"):
        Limits(**limits)
