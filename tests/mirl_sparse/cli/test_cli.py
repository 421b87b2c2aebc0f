"""The command as it is typed: what it prints, writes and refuses."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image
from preloaded import mirl
from typer.main import get_command

from mirl_kernels.core import cpu
from mirl_sparse.cli import app as cli
from mirl_sparse.photos import Photo, read_photo, write_photo
from mirl_sparse.tickets.file import write_ticket


def imported_after(code: str, modules: tuple[str, ...], cwd) -> set[str]:
    """Return which of these modules are loaded in a process that ran the code."""
    script = f"import sys\n{code}\nprint(*(m for m in {modules!r} if m in sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=cwd, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


RUN = """
from mirl_sparse.cli.app import main
sys.argv = ["mirl-sparse", *{arguments!r}]
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
"""


@pytest.fixture
def checkpoint(network, tmp_path):
    path = tmp_path / "mirl.ckpt"
    torch.save({"state_dict": {f"net.{k}": v for k, v in network.state_dict().items()}}, path)
    return path


def test_convert_inspect_bench_and_restore(checkpoint, tmp_path):
    done = mirl("convert", checkpoint, "-o", "t.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for part in ("encoder_level1.0.attn.qkv.weight", "24x8x1x1", "fused MDTA", "fused GDFN", "fused prompt"):
        assert part in done.stdout
    assert lines[-1].startswith("removed ")
    assert "wrote t.safetensors" in lines[-1]
    assert lines[-2] == f"read {checkpoint}: nested state dict under 'state_dict'"

    inspected = mirl("inspect", "t.safetensors", cwd=tmp_path)
    assert inspected.returncode == 0
    assert inspected.stdout.splitlines() == lines[:-2]  # the same of the ticket as of its making

    bench = ("bench", "t.safetensors", "--size", 32, "--runs", 2)
    eager = (*bench, "--no-compile", "--no-peers")
    timed = mirl(*eager, "--json", cwd=tmp_path)
    assert timed.returncode == 0, timed.stderr
    result = json.loads(timed.stdout)
    assert result["shape"] == [1, 3, 32, 32]
    table = mirl(*eager, cwd=tmp_path)
    assert "as fast as the strongest dense run" in table.stdout
    assert "of the limit reached" in table.stdout
    profiled = mirl(*bench, "--profile", cwd=tmp_path)
    assert "encoder_level1.0" in profiled.stdout
    assert "of the limit reached" in profiled.stdout

    Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    restored = mirl("restore", "a.png", "b.png", "-o", "out", "--ticket", "t.safetensors", cwd=tmp_path)
    assert restored.returncode == 1
    assert "Traceback" not in restored.stderr
    assert "[1/2] a.png" in restored.stderr
    assert "[2/2] failed: b.png" in restored.stderr
    assert Image.open(tmp_path / "out/a.png").size == (30, 20)
    assert not (tmp_path / "out/b.png").exists()

    Image.fromarray(np.full((300, 400, 3), 99, np.uint8)).save(tmp_path / "c.png")
    tiled = mirl("restore", "c.png", "--ticket", "t.safetensors", "--max-memory", "20M", cwd=tmp_path)
    assert tiled.returncode == 0, tiled.stderr
    assert "restored in tiles of" in tiled.stderr
    assert Image.open(tmp_path / "c_restored.png").size == (400, 300)


def test_restore_blends_by_strength_keeps_16_bits_and_drops_metadata(tmp_path):
    values = np.random.default_rng(0).integers(0, 65_536, (24, 40, 3)).astype(np.uint16)
    write_photo(tmp_path / "a.png", Photo(values, dpi=(300.0, 300.0)))
    results = {}
    for strength in ("0", "0.5", "1"):
        arguments = ("restore", "a.png", "-o", f"{strength}/b.png", "--strength", strength, "--no-metadata")
        assert mirl(*arguments, cwd=tmp_path).returncode == 0
        photo = read_photo(tmp_path / strength / "b.png")
        assert photo.dpi is None
        assert photo.pixels.dtype == np.uint16
        results[strength] = photo.pixels.astype(int)
    np.testing.assert_array_equal(results["0"], values)
    assert np.abs(results["1"] - values).max() > 1000
    # The whole restored photo is clipped before it is written; what is not can be compared.
    whole = (results["1"] > 0) & (results["1"] < 65_535)
    assert np.abs(results["0.5"] - (results["0"] + results["1"]) / 2)[whole].max() <= 1


def test_restore_goes_on_where_a_folder_was_left(tmp_path):
    for name in ("a.png", "b.jpg"):
        write_photo(tmp_path / "in" / name, Photo(np.full((16, 24, 3), 100, np.uint8)))
    command = ("restore", "in", "-o", "out")
    planned = mirl(*command, "--dry-run", cwd=tmp_path)
    assert planned.stdout.splitlines() == ["in/a.png -> out/a.png", "in/b.jpg -> out/b.jpg"]
    assert not (tmp_path / "out").exists()

    def restored(*more: str) -> list[str]:
        done = mirl(*command, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return re.findall(r"in/(\w\.\w+)  ", done.stderr)

    assert restored() == ["a.png", "b.jpg"]
    assert restored() == []
    assert restored("--strength", "0.5") == ["a.png", "b.jpg"]  # another way: another result
    assert restored("--strength", "0.5", "--overwrite") == ["a.png", "b.jpg"]
    write_photo(tmp_path / "in" / "c.png", Photo(np.full((16, 24, 3), 100, np.uint8)))
    later = (tmp_path / "out" / "b.jpg").stat().st_mtime + 10
    os.utime(tmp_path / "in" / "b.jpg", (later, later))
    assert restored("--strength", "0.5") == ["b.jpg", "c.png"]
    (tmp_path / "out" / "a.png").unlink()
    with (tmp_path / "out" / ".mirl-sparse.jsonl").open("a") as file:
        file.write('{"result": "c.p')  # a kill in the middle of a line
    assert restored("--strength", "0.5") == ["a.png"]


def test_restore_leaves_whole_files_when_it_is_stopped_and_goes_on(tmp_path):
    (tmp_path / "in").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    for i in range(40):
        write_photo(tmp_path / f"in/{i:02}.png", Photo(pixels))
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from mirl_sparse.cli.app import main; main()"
    command = [sys.executable, "-c", code, "restore", "in", "-o", "out"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert running.stderr
    for _ in range(2):
        assert "in/" in running.stderr.readline()
    running.send_signal(signal.SIGINT)
    last = running.communicate(timeout=300)[1].splitlines()[-1]
    assert running.returncode == 130
    results = set((tmp_path / "out").iterdir()) - {tmp_path / "out/.mirl-sparse.jsonl"}
    assert 2 <= len(results) < 40
    for result in results:
        assert read_photo(result).pixels.shape == pixels.shape
    assert re.fullmatch(r"stopped after \d+ of 40; the same command goes on", last)
    again = mirl("restore", "in", "-o", "out", cwd=tmp_path)
    assert again.stderr.startswith(f"{len(results)} results are up to date")
    assert len(list((tmp_path / "out").glob("*.png"))) == 40


def test_restore_shows_a_bar_of_several_photos_in_a_terminal(tmp_path):
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(tmp_path / name)
    terminal, stderr = pty.openpty()
    code = "import sys\n" + RUN.format(arguments=["restore", "a.png", "b.png"])
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=stderr,
        cwd=tmp_path,
        env=os.environ | {"TERM": "xterm"},
        timeout=300,
    )
    os.close(stderr)
    said = ""
    with suppress(OSError):  # Linux reports the end of a terminal as an error
        while data := os.read(terminal, 1 << 16):
            said += data.decode(errors="replace")
    os.close(terminal)
    assert done.returncode == 0, said
    assert done.stdout == b""
    for part in ("[1/2] a.png", "[2/2] b.png", "━"):
        assert part in said


def shell(script, cwd, **environment) -> subprocess.CompletedProcess[bytes]:
    """Run a script of bash in which mirl is the command."""
    mirl = f"mirl() {{ '{sys.executable}' -c 'from mirl_sparse.cli.app import main; main()' \"$@\"; }}\n"
    return subprocess.run(
        ["bash", "-c", mirl + script], capture_output=True, cwd=cwd, env=os.environ | environment, timeout=300
    )


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_names_of_any_kind_are_printed_on_any_terminal(encoding, tmp_path):
    for name in (b"\xff\xfe.png", "日本é.png".encode(), b"a\nb\x1b[31m.png", b"c.x\x1by"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            Image.new("RGB", (8, 8)).save(file, "PNG")
    planned = shell("mirl restore . -o out --dry-run", tmp_path, PYTHONIOENCODING=encoding)
    assert planned.returncode == 0, planned.stderr
    lines = planned.stdout.decode().splitlines()
    assert r"a\nb\x1b[31m.png -> out/a\nb\x1b[31m.png" in lines
    assert r"\xff\xfe.png -> out/\xff\xfe.png" in lines
    japanese = "日本é" if "utf" in encoding else r"\u65e5\u672c\xe9"
    assert f"{japanese}.png -> out/{japanese}.png" in lines
    assert planned.stderr.decode() == "left out what holds no readable image: 1 .x\\x1by\n"
    for command in (
        "restore .",
        "restore $'\\x1b[31m\\xff'",
        "inspect $'\\x1b[31m\\xff'",
        "convert $'\\x1b[31m\\xff'",
    ):
        done = shell(f"mirl {command}", tmp_path, PYTHONIOENCODING=encoding)
        assert done.returncode == (0 if command == "restore ." else 2)
        assert b"Traceback" not in done.stderr
        assert b"\x1b" not in done.stderr


@pytest.mark.parametrize(
    ("script", "status", "message"),
    [
        (
            "mirl restore - -o x.png <&-",
            2,
            b"mirl-sparse: standard input is closed; redirect it or name a file\n",
        ),
        ("mirl restore a.png -o - >&-", 2, b"mirl-sparse: standard output is closed;"),
        ("mirl inspect small >&-", 0, b""),
        ("mirl restore a.png -o - 2>&- | cmp - b.png", 0, b""),
        ("mirl restore nothing.png 2>&-", 2, b""),
    ],
)
def test_closed_streams_are_one_line(script, status, message, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert mirl("restore", "a.png", "-o", "b.png", cwd=tmp_path).returncode == 0
    done = shell(f"set -o pipefail; {script}", tmp_path)
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith(message)
    assert done.stderr.count(b"\n") == bool(message)
    assert done.stdout == b""


def test_a_photo_restored_alone_is_not_taken_for_the_earlier_result(tmp_path):
    for name in ("a.png", "b.png"):
        write_photo(tmp_path / "in" / name, Photo(np.full((16, 24, 3), 100, np.uint8)))
    for arguments, done in [
        (["in", "-o", "out"], "ab"),
        (["in/a.png", "-o", "out", "--strength", "0"], "a"),
        (["in", "-o", "out"], "a"),
        (["in", "-o", "out"], ""),
    ]:
        said = mirl("restore", *arguments, cwd=tmp_path).stderr
        assert "".join(re.findall(r"in/(\w)\.png  ", said)) == done


def test_help_shows_every_word(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TERMINAL_WIDTH", "400")
    for name, command in get_command(cli.build()).commands.items():
        with pytest.raises(SystemExit):
            command.main(["--help"], prog_name=name)
        said = capsys.readouterr().out
        for parameter in command.params:
            assert parameter.help in said or parameter.help.startswith("Show this message")


HEAVY = ("torch", "numpy", "skimage", "scipy", "matplotlib", "yaml", "PIL", "safetensors")


def test_help_loads_nothing_heavy(tmp_path):
    code = RUN.format(arguments=["--help"])
    assert imported_after(code, ("typer", "pydantic", *HEAVY), tmp_path) == {"typer"}


@pytest.mark.parametrize(
    "command",
    [
        "restore",
        "batch",
        "batch-status",
        "convert",
        "inspect",
        "bench",
        "tune",
        "doctor",
        "train",
        "eval",
        "demo",
    ],
)
def test_help_of_a_command_loads_nothing_heavy(tmp_path, command):
    code = RUN.format(arguments=[command, "--help"])  # typer itself loads pydantic to parse options
    assert imported_after(code, ("typer", *HEAVY), tmp_path) == {"typer"}


def test_restore_loads_no_package_that_only_other_commands_need(tmp_path):
    Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(tmp_path / "a.png")
    code = """
from mirl_sparse.cli.app import build
from mirl_sparse.cli.restore import restore
build()
restore(["a.png"])
"""
    others = ("scipy", "skimage", "matplotlib", "pydantic", "yaml", "mirl_training.runs")
    assert imported_after(code, ("torch", *others), tmp_path) == set()
    assert (tmp_path / "a_restored.png").exists()


def test_the_shipped_ticket_is_the_default(tmp_path):
    (tmp_path / "small").mkdir()  # a folder of that name is not meant
    Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(tmp_path / "a.jpg")
    done = mirl("restore", "a.jpg", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "a_restored.jpg").size == (30, 20)
    assert "refinement.0.ffn.project_out.weight" in mirl("inspect", "small", cwd=tmp_path).stdout


@pytest.mark.quiet
@pytest.mark.slow
def test_inspect_predicts_what_a_ticket_costs_here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = mirl("inspect", "small", "--cost", "--size", 64, cwd=tmp_path)
    assert re.search(r"predicted for 64x64 on \d+ threads here: [1-9]\d* ms$", done.stdout.strip()), (
        done.stderr
    )
    assert (tmp_path / "mirl-sparse" / "prices.json").exists()
    assert mirl("inspect", "small", "--cost", "--size", 64, cwd=tmp_path).stdout == done.stdout


def test_too_little_memory_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(cli, "build", lambda: lambda: torch.empty(1 << 50))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("mirl-sparse: not enough memory (")
    assert said.count("\n") == 1
    monkeypatch.setattr(cli, "build", lambda: lambda: torch.ones(2) @ torch.ones(3))  # a bug passes through
    with pytest.raises(RuntimeError, match="size"):
        cli.main()


no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("inspect", "small", "--cost", "--size", "60"),
            "size 60 does not suit the network; expected a multiple of 8",
        ),
        (("convert", "missing.ckpt"), "missing.ckpt"),
        (("convert", "text.ckpt"), "text.ckpt"),
        (("convert", ""), "expected"),
        (("convert", "mirl.ckpt", "-o", "mirl.ckpt"), "is the checkpoint itself"),
        (("convert", "mirl.ckpt", "-o", "text.ckpt/t"), "cannot be written"),
        (("convert", "missing.ckpt", "-o", "mirl.ckpt"), "missing.ckpt: no such file"),
        (("train", "run.yaml", "--data", ".", "-o", "text.ckpt"), "text.ckpt"),
        (("inspect", "missing"), "nor a shipped ticket (haze, small)"),
        (("restore", "missing.png"), "no such file"),
        (("restore", "mirl.ckpt", "-o", "x.gif"), "suffix '.gif'"),
        (("restore", "a.png", "--ticket", "mirl.ckpt"), "mirl.ckpt"),
        (("restore", "a.png", "--ticket", "nothing"), "nor a shipped ticket (haze, small)"),
        (("restore", "a.png", "--backend", "gpu"), "expected one of auto, cpu, reference"),
        (("restore", "a.png", "--max-memory", "much"), "expected a size such as 4G or 500M"),
        (("restore", "a.png", "--max-memory", "0.5"), "expected a size such as 4G or 500M"),
        (("restore", "a.png", "--max-memory", "1k"), "expected a size such as 4G or 500M, at least 1M"),
        (("restore", "a.png", "--max-memory", "9" * 310), "expected a size such as 4G or 500M"),
        (("bench", "mirl.ckpt", "--size", "30"), "multiple of 8"),
        (("bench", "mirl.ckpt", "--backend", "gpu"), "expected cpu or"),
        (("bench", "mirl.ckpt", "--backend", "triton", "--profile"), "without --profile"),
        pytest.param(("bench", "mirl.ckpt", "--backend", "triton"), "PyTorch sees none", marks=no_gpu),
        pytest.param(("restore", "a.png", "--backend", "triton"), "PyTorch sees none", marks=no_gpu),
        pytest.param(("tune", "small"), "PyTorch sees none", marks=no_gpu),
        pytest.param(("convert", "mirl.ckpt", "--tune", "60"), "PyTorch sees none", marks=no_gpu),
        (("tune", "small", "--precision", "int8"), "expected float16, bfloat16, float32"),
        (("train", "missing.yaml"), "missing.yaml"),
        (("train", "text.ckpt"), "expected settings"),
        (("eval", "mirl.ckpt", "--data", "."), "the folder that holds denoise/CBSD68"),
        (("demo", "--ticket", "nothing"), "nor a shipped ticket (haze, small)"),
    ],
)
def test_bad_input_is_one_line_and_status_2(checkpoint, tmp_path, arguments, message):
    (tmp_path / "text.ckpt").write_text("just words")
    (tmp_path / "run.yaml").write_text(
        "start: small\n"
        "data: {clean: ., validation_images: 1, tasks: {rain: 1}}\n"
        "training: {steps: 1, patch_size: 8}\n"
    )
    for value, name in enumerate(("a.png", "b.png")):
        Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(tmp_path / name)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    done = mirl(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stdout == ""
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_ticket_of_another_format_is_refused(network, tmp_path):
    write_ticket(tmp_path / "t.safetensors", network, {})
    data = (tmp_path / "t.safetensors").read_bytes()
    (tmp_path / "t.safetensors").write_bytes(data.replace(b"mirl-sparse ticket 1", b"mirl-sparse ticket 9"))
    done = mirl("inspect", "t.safetensors", cwd=tmp_path)
    assert done.returncode == 2
    assert "ticket 9" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_doctor_says_what_works_and_what_does_not(tmp_path):
    done = mirl("doctor", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    assert re.search(r"^reference: +works$", done.stdout, re.MULTILINE)
    assert re.search(
        rf"^cpu: +{'works' if cpu.available() else 'does not work: .+'}$", done.stdout, re.MULTILINE
    )
    if not torch.cuda.is_available():
        assert re.search(r"^triton: +does not work: .*(GPU|pip install triton)", done.stdout, re.MULTILINE)


@pytest.mark.slow
def test_inspect_predicts_gpus(checkpoint, tmp_path):
    pytest.importorskip("triton")
    done = mirl("inspect", "mirl.ckpt", "--gpus", "--size", "32", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for gpu in ("A100", "H100", "4090", "L4", "MI300X"):
        assert gpu in done.stdout
    assert "Predicted, not measured" in " ".join(done.stdout.split())


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch, capsys):
    def lacks_pydantic() -> None:
        raise ModuleNotFoundError("No module named 'pydantic'", name="pydantic")

    monkeypatch.setattr(cli, "build", lambda: lacks_pydantic)
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err == (
        "mirl-sparse: this command needs the package pydantic:"
        " run pip install '.[training]' in the clone of mirl-sparse\n"
    )
