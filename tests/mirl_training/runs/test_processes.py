"""Test runs as processes: killed at any moment, and several that share every batch under torchrun."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import settings

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CI": "true"}


def write_config(path, **changes):
    path.write_text(yaml.safe_dump(settings(**changes).to_dict()))
    return path


def command(config, photos, folder, *more):
    return [sys.executable, "-m", "mirl_sparse", "train", config, "--data", photos, "-o", folder, *more]


def torchrun(ranks, *arguments, restarts=0):
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        f"--max-restarts={restarts}",
        "-m",
        *arguments[2:],
    ]


def give_prices(folder, prices):
    """Let a run begin with these prices, so that it measures none."""
    folder.mkdir()
    (folder / "prices.json").write_text(json.dumps(prices))


def run(words):
    done = subprocess.run(
        [str(w) for w in words], env=ENVIRONMENT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(folder):
    """Return what a run leaves behind that must not depend on how it went: weights, masks, metrics."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.glob("round_*/*"))}


@pytest.mark.parametrize("kills", [2, pytest.param(12, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "pruning", [{}, pytest.param({"criterion": "latency", "speedup": 1.3}, marks=pytest.mark.slow)]
)
def test_a_run_that_is_killed_at_any_moment_ends_with_the_same_bits(photos, tmp_path, kills, pruning, prices):
    training = {"steps": 6 * kills, "save_every": 1, "validate_every": 2, "optimizer": "muon", "ema": 0.9}
    config = write_config(
        tmp_path / "c.yaml", training=training, pruning={"settled": 1e-6, "rewind": 3} | pruning
    )
    for name in ("whole", "killed"):
        give_prices(tmp_path / name, prices)
    run(command(config, photos, tmp_path / "whole"))
    begin = time.monotonic()
    run(command(config, photos, tmp_path / "whole"))  # finished: it only starts
    start = time.monotonic() - begin
    first = json.loads((tmp_path / "whole/log.jsonl").read_text().splitlines()[0])
    log = tmp_path / "killed/log.jsonl"
    generator, killed = random.Random(0), 0
    while not (tmp_path / "killed/round_02").exists():
        process = subprocess.Popen(
            [str(w) for w in command(config, photos, tmp_path / "killed")],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
        )
        if killed < kills and killed % 2:  # while it starts, or has just begun
            time.sleep(generator.uniform(0, start))
        elif killed < kills:
            size = log.stat().st_size if log.exists() else 0
            while process.poll() is None and (log.stat().st_size if log.exists() else 0) == size:
                time.sleep(0.01)  # it is under way once it has logged something more
            time.sleep(generator.uniform(0, 4 * first["seconds_per_step"]))
        if killed < kills:
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
        process.communicate()
    run(command(config, photos, tmp_path / "killed"))
    whole = files(tmp_path / "whole")
    assert len(whole) == 9
    assert files(tmp_path / "killed") == whole
    assert killed == kills


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("engine", "pruning", "apart"),
    [
        ("fused", {}, 2),
        pytest.param("reference", {}, 2, marks=pytest.mark.slow),
        ("fused", {"criterion": "latency", "speedup": 1.3}, 100),
    ],
)
def test_two_processes_train_what_one_does(photos, tmp_path, engine, pruning, apart, prices):
    training = {"steps": 6, "batch_size": 4, "validate_every": 2, "accumulate": 2}
    config = write_config(tmp_path / "c.yaml", training=training, pruning=pruning | {"rounds": 1})
    for name in ("one", "two"):
        give_prices(tmp_path / name, prices)
    run(command(config, photos, tmp_path / "one", "--engine", engine))
    told = run(torchrun(2, *command(config, photos, tmp_path / "two", "--engine", engine)))
    assert told.count("finished:") == 1
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    for name in ("round_00/mask.safetensors", "round_01/mask.safetensors"):
        one, two = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
        # Where rounding decides between neighbours: weights, or whole channels by the criterion latency.
        assert sum(int((one[n] != two[n]).sum()) for n in one) <= apart
    start = load_file(tmp_path / "one/start.safetensors")
    for name, weight in load_file(tmp_path / "one/round_01/weights.safetensors").items():
        moved = float((weight - start[name]).abs().max())
        two = load_file(tmp_path / "two/round_01/weights.safetensors")[name]
        torch.testing.assert_close(two, weight, rtol=0, atol=0.05 * moved + 1e-6, msg=name)


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_process_is_started_again_and_all_end_the_same(photos, tmp_path, rank):
    training = {"steps": 40, "batch_size": 2, "save_every": 1, "validate_every": 4}
    config = write_config(tmp_path / "c.yaml", training=training, pruning={"rounds": 1})
    run(torchrun(2, *command(config, photos, tmp_path / "whole")))
    words = [str(w) for w in torchrun(2, *command(config, photos, tmp_path / "killed"), restarts=1)]
    agent = subprocess.Popen(
        words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "killed/log.jsonl"
    while agent.poll() is None and not log.exists():
        time.sleep(0.02)
    workers = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    os.kill(int(workers[rank - 2]), signal.SIGKILL)
    _, errors = agent.communicate(timeout=600)
    assert agent.returncode == 0, errors
    assert "Signal 9 (SIGKILL)" in errors or "exitcode: -9" in errors, errors
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_batch_that_cannot_be_shared_is_refused(photos, tmp_path):
    config = write_config(tmp_path / "c.yaml", training={"batch_size": 3})
    done = subprocess.run(
        [str(w) for w in torchrun(2, *command(config, photos, tmp_path / "run"))],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode != 0
    assert "batch size 3 cannot be shared by 2 processes" in done.stderr
    assert not (tmp_path / "run").exists()
