"""Compile tickets, and run them on the C++ runtime, with and without Python."""

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from preloaded import mirl

from mirl_kernels.core import cpu, native
from mirl_sparse import SparseRestorer, UserError
from mirl_sparse.compilation import compile_ticket
from mirl_sparse.program import CompiledRestorer, find_program
from mirl_sparse.tickets import find_ticket, shipped_names
from mirl_sparse.tickets.file import write_ticket

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "kernels/mirl_kernels"


@pytest.fixture
def ticket(network, tmp_path):
    path = tmp_path / "tiny.safetensors"
    write_ticket(path, network, {})
    return path


@pytest.fixture
def program(ticket, tmp_path):
    compile_ticket(ticket, tmp_path / "tiny.mirl")
    return tmp_path / "tiny.mirl"


def photo(height, width, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (height, width, 3), dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(1, 1), (33, 57), (96, 64)])
@pytest.mark.parametrize("strength", [1, 0.3, 0])
def test_programs_restore_as_tickets_do(network, program, size, dtype, strength):
    image = photo(*size, dtype)
    expected = SparseRestorer(network).restore(image, strength)
    restored = CompiledRestorer(program).restore(image, strength)
    assert restored.dtype == dtype
    # 1: products of AVX-512 may be summed in another order in a program for every processor
    assert np.abs(restored.astype(int) - expected).max() <= 1


def test_tiles_blend_without_seams(program):
    restorer = CompiledRestorer(program)
    image = np.repeat(np.repeat(photo(50, 70), 8, 0), 8, 1)
    whole = restorer.restore(image).astype(int)
    restorer.max_memory = 25_000_000
    with pytest.warns(UserWarning, match=r"restored in tiles of \d+x\d+"):
        tiled = restorer.restore(image).astype(int)
    difference = np.abs(tiled - whole)  # attention sees less; a wrong seam would be off by tens
    assert difference.mean() < 0.5
    assert difference.max() <= 8
    restorer.max_memory = 1000
    with pytest.raises(MemoryError, match="even tiles of"):
        restorer.restore(image)


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_programs_are_those_of_the_shipped_tickets(name, tmp_path):
    compile_ticket(find_ticket(name), tmp_path / "new.mirl")
    shipped = find_program(name)
    assert shipped
    new, old = (CompiledRestorer(file).restore(photo(64, 64)) for file in (tmp_path / "new.mirl", shipped))
    assert (new != old).mean() < 1e-3, f"run mirl-sparse compile {name} -o {shipped}"


def test_compile_and_restore_on_the_command_line(ticket, tmp_path):
    done = mirl("compile", ticket, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("wrote tiny.mirl (")
    from PIL import Image

    Image.fromarray(photo(40, 30)).save(tmp_path / "photo.png")
    done = mirl("restore", "photo.png", "--ticket", "tiny.mirl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    restored = np.asarray(Image.open(tmp_path / "photo_restored.png"))
    assert (restored == CompiledRestorer(tmp_path / "tiny.mirl").restore(photo(40, 30))).all()


def test_what_is_no_ticket_or_program_is_one_line(program, tmp_path):
    (tmp_path / "text.txt").write_text("no ticket")
    done = mirl("compile", "text.txt", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "mirl-sparse: text.txt: is no ticket; run mirl-sparse convert first\n"
    done = mirl("compile", program, cwd=tmp_path)
    assert (
        done.stderr == f"mirl-sparse: {program}: is a program already; give the ticket that it was made of\n"
    )
    done = mirl("restore", "a.png", "--ticket", program, "--backend", "reference", cwd=tmp_path)
    assert done.returncode == 2
    with pytest.raises(UserError, match="cannot be read"):
        CompiledRestorer(tmp_path / "missing.mirl")
    (tmp_path / "text.mirl").write_text("no program" * 10)
    with pytest.raises(UserError, match=r"text.mirl: not a program; expected a file from"):
        CompiledRestorer(tmp_path / "text.mirl")
    data = bytearray(program.read_bytes())
    data[-1] ^= 1
    program.write_bytes(data)
    with pytest.raises(UserError, match=r"tiny.mirl: the program is damaged \(checksum\)"):
        CompiledRestorer(program)


def test_wrong_photos_are_refused(program):
    restorer = CompiledRestorer(program)
    with pytest.raises(UserError, match="expected \\(H, W, 3\\)"):
        restorer.restore(np.zeros((4, 4), np.uint8))
    with pytest.raises(UserError, match="strength is 2"):
        restorer.restore(photo(4, 4), 2)


def without_pytorch(*arguments, cwd):
    """Run a command where PyTorch cannot be imported."""
    script = (
        "import sys; sys.modules['torch'] = None; from mirl_sparse.cli.app import main\n"
        f"sys.argv[1:] = {arguments!r}; main()"
    )
    return subprocess.run([sys.executable, "-c", script], cwd=cwd, capture_output=True, text=True)


def test_the_shipped_ticket_restores_without_pytorch(tmp_path):
    from PIL import Image

    Image.fromarray(photo(40, 30)).save(tmp_path / "photo.png")
    done = without_pytorch("restore", "photo.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = SparseRestorer.from_pretrained("small").restore(photo(40, 30))
    assert np.abs(np.asarray(Image.open(tmp_path / "photo_restored.png")).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("arguments", [("compile", "small"), ("inspect", "small"), ("convert", "a.pt")])
def test_commands_that_need_pytorch_say_so(arguments, tmp_path):
    done = without_pytorch(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    expected = "mirl-sparse: this command needs the package torch: run pip install '.[torch]' in the clone"
    assert done.stderr.startswith(expected)


def test_progress_is_told_and_what_it_raises_stops_the_work(network):
    engine = SparseRestorer(network).engine()
    plan = native.Plan(engine._program, 1, 32, 32)
    image, result, told = torch.rand(1, 3, 32, 32), torch.empty(1, 3, 32, 32), []
    threads = torch.get_num_threads()
    plan.run(image.data_ptr(), result.data_ptr(), threads, told.append)
    assert len(told) == len(engine._steps)
    assert told == sorted(told)
    assert told[-1] == 1

    def stop(done):
        raise KeyError(done)

    with pytest.raises(KeyError):
        plan.run(image.data_ptr(), result.data_ptr(), threads, stop)
    plan.run(image.data_ptr(), result.data_ptr(), threads)
    assert torch.equal(result, SparseRestorer(network)(image))


@pytest.mark.quiet
@pytest.mark.slow
def test_a_call_costs_little_beside_the_kernels(network):
    """Time outside of the C++ runtime; 0.8 ms before there was one."""
    restorer, image = SparseRestorer(network), torch.rand(1, 3, 8, 8)
    engine = restorer.engine()
    plan = native.Plan(engine._program, 1, 8, 8)
    image, result = image.contiguous(), torch.empty(1, 3, 8, 8)

    def fastest(call):
        times = []
        for _ in range(2000):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        return min(times)

    threads = torch.get_num_threads()
    inner = fastest(lambda: plan.run(image.data_ptr(), result.data_ptr(), threads))
    assert fastest(lambda: engine(image)) - inner < 50e-6


def compiler(*names):
    return next((path for name in names if (path := shutil.which(name))), None)


def test_the_c_example_restores_a_photo(program, tmp_path):
    """Build examples/restore.c with the library and its header, as the docs say."""
    if not (cc := compiler("cc", "gcc", "clang")):
        pytest.skip("there is no C compiler")
    library = Path(native.load_library()._name)
    source, target = ROOT / "examples/restore.c", tmp_path / "restore"
    command = [cc, "-std=c99", "-Wall", "-Wextra", "-Werror", str(source), "-o", str(target)]
    folders = [f"-I{library.parent}", f"-I{SOURCES / 'core/cpu/src'}", f"-Wl,-rpath,{library.parent}"]
    subprocess.run([*command, *folders, str(library)], check=True)
    image = photo(40, 30)
    (tmp_path / "in.ppm").write_bytes(b"P6 30 40 255\n" + image.tobytes())
    subprocess.run([target, program, tmp_path / "in.ppm", tmp_path / "out.ppm"], check=True)
    restored = np.frombuffer((tmp_path / "out.ppm").read_bytes()[13:], np.uint8).reshape(40, 30, 3)
    assert (restored == CompiledRestorer(program).restore(image)).all()
    failed = subprocess.run(
        [target, tmp_path / "in.ppm", tmp_path / "in.ppm", tmp_path / "out.ppm"],
        capture_output=True,
        text=True,
    )
    assert failed.returncode == 1
    assert failed.stderr == "not a program; expected a file from mirl-sparse compile\n"


@pytest.mark.slow
def test_the_runtime_under_sanitizers(program, tmp_path):
    """Run tests/cpp/test_runtime.cpp, with 3,000 hostile programs among others."""
    if not (cxx := compiler("g++", "clang++")):
        pytest.skip("there is no C++ compiler")
    patterns = ("ops/*/cpu.cpp", "ops/*/backward.cpp", "core/roofline/cpu.cpp", "core/cpu/src/*.cpp")
    sources = [path for pattern in patterns for path in SOURCES.glob(pattern)]
    sources = [path for path in sources if path.name != "phase_times.cpp" and "wasm" not in path.name] + [
        ROOT / "tests/cpp/test_runtime.cpp"
    ]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    flags = ["-std=c++17", "-O1", "-g1", "-fno-math-errno", "-Wno-psabi", f"-I{SOURCES / 'core/cpu/src'}"]
    isa = ["-DMIRL_ISA=portable", "-DMIRL_LANES=4", "-DMIRL_LANES_portable=4"]

    def compiled(i):
        target = tmp_path / f"{i}.o"
        subprocess.run([cxx, *flags, *isa, *sanitizers, "-c", sources[i], "-o", target], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, range(len(sources))))
    subprocess.run([cxx, *sanitizers, *objects, "-o", tmp_path / "test", "-lpthread"], check=True)
    done = subprocess.run(
        [tmp_path / "test", program, "3000"],
        env={"ASAN_OPTIONS": "allocator_may_return_null=1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_packing_for_any_processor_ends_with_its_context():
    matrix = torch.rand(20, 30) * (torch.rand(20, 30) < 0.3)
    here = cpu.pack(matrix, forms=cpu.Forms.PAIRS)
    with cpu.packed_for_any_processor():
        anywhere = cpu.pack(matrix, forms=cpu.Forms.PAIRS)
    assert cpu.PackedMatrix(anywhere).chunks[0].row_pairs
    assert torch.equal(cpu.pack(matrix, forms=cpu.Forms.PAIRS), here)


def test_ctrl_c_stops_a_photo_in_the_middle(program, tmp_path):
    """Without waiting for its end: the photo takes much longer than that."""
    script = (
        "import _thread, signal, threading, numpy as np\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in the background of a shell
        "from mirl_sparse.program import CompiledRestorer\n"
        f"restorer = CompiledRestorer({str(program)!r}, threads=1)\n"
        "threading.Timer(0.3, _thread.interrupt_main).start()\n"
        "try: restorer.restore(np.zeros((2000, 2000, 3), np.uint8))\n"
        "except KeyboardInterrupt: print('stopped')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "stopped\n", done.stderr


@pytest.mark.parametrize(("setting", "threads"), [("3", 3), ("", 1)])
def test_threads_are_those_of_the_environment(setting, threads):
    """OMP_NUM_THREADS, or the processors that the process may use."""
    script = (
        "import os; from ctypes import CDLL, c_int64; from mirl_kernels.core import native\n"
        "hasattr(os, 'sched_setaffinity') and os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "library = native.load_library(); library.mirl_default_threads.restype = c_int64\n"
        "print(library.mirl_default_threads())"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": setting}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    if threads == 1 and not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system cannot bind a process to a processor")
    assert int(done.stdout) == threads
