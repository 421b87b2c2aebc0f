"""Start the service in a process of its own, and read its figures."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from urllib.parse import urlsplit

_STOP_SECONDS = 60


@dataclass(frozen=True)
class Running:
    """Name a service that runs.

    Attributes:
        host: Its address.
        port: Its port.
        process: Its process.
    """

    host: str
    port: int
    process: subprocess.Popen[str]

    def metrics(self) -> dict[str, float]:
        """Return its figures by name, with their labels."""
        connection = HTTPConnection(self.host, self.port, timeout=_STOP_SECONDS)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        rows = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in rows}

    def resident_bytes(self) -> float:
        """Return how much memory it takes."""
        return self.metrics()["process_resident_memory_bytes"]


@contextmanager
def running(options: Sequence[str]) -> Iterator[Running]:
    """Start a service on a free port of this machine; stop it in the end, and expect that it stops well.

    Args:
        options: Of ``mirl-sparse serve``.

    Raises:
        RuntimeError: It did not start, or did not end with status 0.
    """
    command = [sys.executable, "-m", "mirl_sparse", "serve", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            if not (match := re.search(r"http://\S+", line)):
                raise RuntimeError(f"the service did not start: {' '.join(command)}")
            address = urlsplit(match[0].rstrip(";"))
            assert address.hostname
            assert address.port
            yield Running(address.hostname, address.port, process)
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(_STOP_SECONDS)
    if status:
        raise RuntimeError(f"the service ended with status {status}")
