"""Run commands in copies of one process that has PyTorch loaded, which saves seconds for each.

A copy is made by fork: its arguments, folder and streams are its own, as a new process would have them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import NoReturn


@cache
def _server() -> subprocess.Popen[str]:
    """Start the process that is copied; it ends with this one, whose end closes its input."""
    return subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def mirl(*arguments: object, cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run ``mirl-sparse`` with these arguments in a folder, without input."""
    server = _server()
    assert server.stdin
    assert server.stdout
    with tempfile.TemporaryDirectory() as folder:
        streams = [f"{folder}/stdout", f"{folder}/stderr"]
        words = [str(argument) for argument in arguments]
        job = {"arguments": words, "cwd": str(cwd), "streams": streams, "timeout": timeout}
        print(json.dumps(job), file=server.stdin, flush=True)
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(words, status, *(Path(stream).read_text() for stream in streams))


def _serve() -> None:
    import mirl_training.evaluation
    import mirl_training.runs  # noqa: F401

    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if not child:
            _run(job)
        deadline = time.monotonic() + job["timeout"]
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.kill(child, 9)
            time.sleep(0.005)
        print(os.waitstatus_to_exitcode(ended[1]), flush=True)


def _run(job: dict) -> NoReturn:
    """Become the command."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in enumerate(job["streams"], 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(job["cwd"])
    sys.argv = ["mirl-sparse", *job["arguments"]]
    status = 1
    try:
        from mirl_sparse.cli.app import main

        main()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
