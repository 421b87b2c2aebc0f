"""The commands in docs/batch.md run, or at least their options exist."""

import re
import shlex
from pathlib import Path

import pytest
from batches import make_photo
from preloaded import mirl
from typer.main import get_command

from mirl_sparse.cli.app import build

PAGE = (Path(__file__).parents[3] / "docs/batch.md").read_text()
COMMANDS = re.findall(r"(?:^    |exec )(mirl-sparse batch.*)$", PAGE, re.MULTILINE)
TRIED = re.findall(r"^    mirl-sparse (batch.*)$", PAGE.split("## Try it")[1].split("##")[0], re.MULTILINE)


def test_what_is_to_be_tried_runs(tmp_path):
    make_photo(tmp_path / "photos/a.png")
    make_photo(tmp_path / "photos/sub/b.jpg")
    assert len(TRIED) == 7
    for command in TRIED:
        done = mirl(*shlex.split(command), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "restored/sub/b.jpg").exists()
    assert (tmp_path / "webp/a.png.webp").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_options_of_a_command_exist(command):
    _, name, *arguments = shlex.split(command)
    get_command(build()).commands[name].make_context(name, arguments)
