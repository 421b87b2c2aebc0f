"""The service as a process of its own, with real connections and signals."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest
from preloaded import mirl
from services import encoded

ROOT = Path(__file__).parents[3]
SECONDS = 60
COMMAND = (
    "import sys; sys.modules['torch'] = None; from mirl_sparse.cli.app import main\n"
    "sys.argv[1:] = {arguments!r}; main()"
)
SHORT_LIMITS = """
from mirl_sparse.service import Access, Limits, Service, bind, run

class AsItIs:
    def restore(self, image, strength):
        return image

limits = Limits(head_seconds=0.3, transfer_seconds=0.5, connections=20)
listener = bind("127.0.0.1", 0, limits)
address = "http://127.0.0.1:%d/" % listener.getsockname()[1]
run(Service([AsItIs()], limits), Access(), listener, 5, lambda: print(address, flush=True))
"""


class Process:
    def __init__(self, script):
        self.process = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.line = self.process.stdout.readline()
        match = re.search(r"http://([\d.]+):(\d+)/", self.line)
        if not match:
            raise RuntimeError(self.process.communicate()[1])
        self.address = match[1], int(match[2])

    def connect(self):
        return HTTPConnection(*self.address, timeout=SECONDS)

    def ask(self, path, body=None):
        with closing(self.connect()) as connection:
            connection.request("GET" if body is None else "POST", path, body)
            response = connection.getresponse()
            return response.status, response.read()

    def metric(self, name):
        text = self.ask("/metrics")[1].decode()
        match = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(match[1]) if match else 0.0

    def wait_for(self, name, value):
        deadline = time.monotonic() + SECONDS
        while self.metric(name) != value:
            assert time.monotonic() < deadline, name
            time.sleep(0.01)

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def end(self):
        """Return the status and what was written to standard error."""
        error = self.process.communicate(timeout=SECONDS)[1]
        return self.process.returncode, error


@pytest.fixture
def start():
    processes = []

    def start(*arguments, script=None):
        arguments = ["serve", "--port", "0", *arguments]
        processes.append(Process(script or COMMAND.format(arguments=arguments)))
        return processes[-1]

    yield start
    for service in processes:
        if service.process.poll() is None:
            service.process.kill()
        service.process.communicate()


def test_it_restores_without_pytorch_as_the_command_does_and_stops_with_status_0(start, tmp_path):
    service = start("--threads", "1")
    assert re.fullmatch(r"serving at http://127\.0\.0\.1:\d+/; Ctrl\+C stops\n", service.line)
    data = encoded(60, 80, "JPEG")
    (tmp_path / "photo.jpg").write_bytes(data)
    assert mirl("restore", "photo.jpg", cwd=tmp_path).returncode == 0
    assert service.ask("/restore", data) == (200, (tmp_path / "photo_restored.jpg").read_bytes())
    assert service.ask("/health")[0] == service.ask("/ready")[0] == service.ask("/docs")[0] == 200
    assert service.ask("/restore", b"no photo")[0] == 415
    service.signal(signal.SIGINT)
    assert service.end() == (0, "")


def test_it_goes_on_when_nobody_reads_its_output_any_more():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-u", "-m", "mirl_sparse", "serve", "--port", "0"]
        process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE)
        theirs.close()
        port = int(re.search(rb"http://127.0.0.1:(\d+)/", ours.recv(1000))[1])
    with closing(HTTPConnection("127.0.0.1", port, timeout=SECONDS)) as connection:
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
    process.terminate()
    assert (process.communicate(timeout=SECONDS)[1], process.returncode) == (b"", 0)


def ask_while_it_stops(service):
    while service.ask("/ready")[0] == 200:
        pass
    return service.ask("/restore", encoded())


def test_photos_in_work_are_finished_after_the_signal_and_new_ones_refused(start):
    service = start("--threads", "1")
    data = encoded(500, 500)
    with ThreadPoolExecutor() as pool:
        work = [pool.submit(service.ask, "/restore", data) for _ in range(2)]
        service.wait_for("mirl_sparse_waiting_photos", 1)
        service.signal()
        refused = pool.submit(ask_while_it_stops, service)
        assert [answer.result()[0] for answer in work] == [200, 200]
        status, body = refused.result()
        assert (status, json.loads(body)["detail"]) == (503, "the service stops; try again later")
    assert service.end() == (0, "")


def test_what_the_grace_does_not_suffice_for_is_answered_and_told(start):
    service = start("--threads", "1", "--grace", "0.1")
    with ThreadPoolExecutor() as pool:
        work = pool.submit(service.ask, "/restore", encoded(1200, 1200))
        service.wait_for("mirl_sparse_running_photos", 1)
        service.signal()
        assert work.result()[0] == 503
    assert service.end() == (1, "mirl-sparse: stopped before 1 photos were restored\n")


def test_a_second_signal_ends_the_grace(start):
    service = start("--threads", "1")
    with ThreadPoolExecutor() as pool:
        work = pool.submit(service.ask, "/restore", encoded(1200, 1200))
        service.wait_for("mirl_sparse_running_photos", 1)
        service.signal()
        assert ask_while_it_stops(service)[0] == 503
        service.signal()
        assert work.result()[0] == 503
    assert service.end()[0] == 1


def test_a_client_that_hangs_up_frees_the_worker(start):
    service = start("--threads", "1")
    data = encoded(1200, 1200)
    connection = service.connect()
    connection.request("POST", "/restore", data)
    service.wait_for("mirl_sparse_running_photos", 1)
    connection.close()
    service.wait_for("mirl_sparse_running_photos", 0)
    service.wait_for('mirl_sparse_requests_total{status="499"}', 1)
    assert service.ask("/restore", encoded())[0] == 200


def raw(service, data, count=1 << 20):
    """Send bytes as they are, and return what comes until the service ends the connection."""
    with socket.create_connection(service.address, timeout=SECONDS) as connection:
        connection.sendall(data)
        received = b""
        while part := connection.recv(count):
            received += part
        return received


def test_slow_and_broken_clients_do_not_stay(start):
    service = start(script=SHORT_LIMITS)
    assert raw(service, b"") == b""  # says nothing
    assert raw(service, b"POST /rest") == b""  # does not end its head
    assert raw(service, b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET /").startswith(b"HTTP/1.1 200")
    slow = raw(service, b"POST /restore HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
    assert slow.startswith(b"HTTP/1.1 408")
    assert raw(service, b"no HTTP at all\r\n\r\n").startswith(b"HTTP/1.1 400")
    early = b"POST /restore HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n" + bytes(100_000)
    assert raw(service, early).startswith(b"HTTP/1.1 413")
    assert service.metric("mirl_sparse_held_bytes") == 0
    assert service.ask("/restore", encoded())[0] == 200


@pytest.mark.slow
def test_a_client_that_reads_nothing_does_not_stay(start):
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        pytest.skip("this system has no such limit")
    service = start(script=SHORT_LIMITS)
    data = encoded(1500, 1500, "BMP")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(SECONDS)
        connection.connect(service.address)
        head = f"POST /restore HTTP/1.1\r\nHost: a\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        service.wait_for('mirl_sparse_requests_total{status="499"}', 1)
        assert service.metric("mirl_sparse_held_bytes") == 0


def test_no_more_connections_are_served_than_allowed(start):
    service = start(script=SHORT_LIMITS.replace("head_seconds=0.3", "head_seconds=60"))
    idle = [socket.create_connection(service.address) for _ in range(20)]
    assert service.ask("/health")[0] == 503
    for connection in idle:
        connection.close()
    deadline = time.monotonic() + SECONDS
    while service.ask("/health")[0] != 200:
        assert time.monotonic() < deadline


def test_many_clients_at_once_are_all_answered(start):
    service = start("--threads", "1", "--queue", "3")
    data, barrier = encoded(100, 100), threading.Barrier(12)

    def client(_):
        barrier.wait()
        return service.ask("/restore", data)

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(client, range(12)))
    assert {status for status, _ in answers} == {200, 429}
    assert len({body for status, body in answers if status == 200}) == 1
    assert service.metric("mirl_sparse_waiting_photos") == 0


def test_a_port_that_is_taken_is_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = mirl("serve", "--port", port, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"mirl-sparse: 127.0.0.1, port {port}: cannot be used (Address already")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--max-bytes", "much"), "--max-bytes is 'much'"),
        (("--buffer", "1M"), "one photo may have 50,000,000 bytes, all together 1,000,000"),
        (("--max-megapixels", "0"), "photo_pixels is 0"),
        (("--ticket", "none"), "none"),
        (("--host", "no.such.host.invalid"), "no.such.host.invalid, port 8000: cannot be used"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, arguments, words):
    done = mirl("serve", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client", "python_multipart"])
def test_a_missing_package_names_its_extra(package):
    script = COMMAND.format(arguments=["serve"]).replace("'torch'", repr(package))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"needs the package {package}: run pip install '.[serve]'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_other_backends_serve_too(start):
    arguments = ["serve", "--port", "0", "--backend", "reference", "--threads", "1"]
    script = COMMAND.replace("sys.modules['torch'] = None; ", "").format(arguments=arguments)
    service = start(script=script)
    assert service.ask("/restore", encoded())[0] == 200
    service.signal()
    assert service.end()[0] == 0


@pytest.mark.quiet
@pytest.mark.slow
def test_at_twice_the_load_that_it_can_do_it_keeps_its_promises(tmp_path):
    command = [sys.executable, "-m", "benchmarks.service", "--seconds", "60", "--capacity-seconds", "15"]
    done = subprocess.run([*command, "-o", tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "service.json").read_text())
    assert result["failures"] == 0
    assert result["accepted"] + result["refused"] == result["sent"]
