"""The examples of docs/service.md do what they say; the container file names what exists."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from services import encoded

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs/service.md").read_text("utf-8")
ADDRESS = "http://127.0.0.1:8000/"


def examples(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def service():
    command = [sys.executable, "-m", "mirl_sparse", "serve", "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield re.search(r"http://\S+/", process.stdout.readline())[0]
        process.terminate()
        assert process.wait(60) == 0


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(encoded(40, 60, "JPEG"))
    return tmp_path


def test_there_are_examples():
    assert len(examples("sh")) == 2
    assert len(examples("python")) == 2


@pytest.mark.parametrize("example", examples("python"))
def test_the_python_examples_restore(service, folder, example):
    code = example.replace(ADDRESS, service)
    assert code != example
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    with Image.open(folder / "restored.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (60, 40))


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl")
@pytest.mark.parametrize("example", examples("sh"))
def test_the_curl_examples_work(service, folder, example):
    done = subprocess.run(
        ["sh", "-ec", example.replace(ADDRESS, service)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    if "restored.jpg" in example:
        full, part = (np.asarray(Image.open(folder / n)) for n in ("restored.jpg", "photo_restored.png"))
        assert full.shape == part.shape == (40, 60, 3)


def test_the_container_runs_the_command_with_options_that_it_has():
    text = (ROOT / "examples/Containerfile").read_text()
    options = re.search(r'ENTRYPOINT \["mirl-sparse", (.*)\]', text)[1].replace('"', "").split(", ")
    done = subprocess.run([sys.executable, "-m", "mirl_sparse", *options, "--help"], capture_output=True)
    assert done.returncode == 0
    assert "/health" in text
    assert "USER mirl" in text
