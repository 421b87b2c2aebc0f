"""Test runs: rounds on disk, rewinding, going on after a stop, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny import settings

from mirl_sparse.architectures.promptir import PromptIR
from mirl_sparse.errors import UserError
from mirl_sparse.photos import read_image, write_image
from mirl_sparse.tickets import load_network, write_ticket
from mirl_training.engine import World
from mirl_training.pruning import Mask
from mirl_training.runs import OutOfTime, Run, RunConfig, RunFolder, learning_rate
from mirl_training.runs.round import begin_round, read_unfinished


class Stopped(Exception):
    pass


def quiet(report: dict) -> None:
    pass


def stop_at(round_index: int, step: int):
    def report(values: dict) -> None:
        if (values["round"], values["step"]) == (round_index, step):
            raise Stopped

    return report


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("criterion", ["global", "layerwise"])
def test_rounds_are_files_with_nested_masks_of_the_asked_density(photos, tmp_path, criterion):
    last = Run(settings(pruning={"criterion": criterion}), photos, tmp_path / "run", quiet).go()
    assert last.name == "round_02"
    before = None
    for i in range(3):
        folder = tmp_path / f"run/round_{i:02d}"
        mask, weights = (
            Mask(load_file(folder / "mask.safetensors")),
            load_file(folder / "weights.safetensors"),
        )
        assert mask.density == pytest.approx(0.5**i, abs=1e-3)
        assert all(not weights[n][~keep].any() for n, keep in mask.alive.items())
        assert before is None or all(bool((before.alive[n] | ~k).all()) for n, k in mask.alive.items())
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["round"] == i
        assert set(metrics["psnr"]) == {"noise25", "rain", "haze", "fog"}
        before = mask
    lines = (tmp_path / "run/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [0, 1, 2]
    assert not list((tmp_path / "run").glob("*.part"))


def test_layers_that_are_never_called_stay_as_they_are(photos, tmp_path):
    last = Run(
        settings(network={"unused_layers": True}, pruning={"rounds": 1}), photos, tmp_path / "run", quiet
    ).go()
    start, end = load_file(tmp_path / "run/start.safetensors"), load_file(last / "weights.safetensors")
    assert torch.equal(start["chnl_reduce1.weight"], end["chnl_reduce1.weight"])
    assert not torch.equal(start["output.weight"], end["output.weight"])


@pytest.mark.parametrize(
    ("rewind", "source"), [("initial", "start"), (2, "rewind"), ("none", "round_00/weights")]
)
def test_a_round_starts_from_the_masked_weights_it_rewinds_to(photos, tmp_path, rewind, source):
    run = Run(settings(pruning={"rewind": rewind, "rounds": 1}), photos, tmp_path / "run", quiet)
    run.go()
    mask = begin_round(run.context, run.pruner, 1)
    start = load_file(tmp_path / f"run/{source}.safetensors")
    for name, p in run.network.named_parameters():
        expected = start[name] * mask.alive[name] if name in mask.alive else start[name]
        assert torch.equal(p, expected), name
    assert same(mask.alive, load_file(tmp_path / "run/round_01/mask.safetensors"))


@pytest.mark.parametrize("where", [(0, 1), (0, 3), (1, 2), (2, 3)])
def test_a_stopped_run_goes_on_to_the_very_same_weights(photos, tmp_path, where):
    progressive = [{"after": 0.4, "batch_size": 1, "patch_size": 24}]
    config = settings(training={"save_every": 2, "optimizer": "muon", "ema": 0.9, "progressive": progressive})
    whole = Run(config, photos, tmp_path / "whole", quiet).go()
    with pytest.raises(Stopped):
        Run(config, photos, tmp_path / "stopped", stop_at(*where)).go()
    resumed = Run(config, photos, tmp_path / "stopped", quiet).go()
    for name in ("weights.safetensors", "mask.safetensors"):
        assert same(load_file(whole / name), load_file(resumed / name))
    assert json.loads((whole / "metrics.json").read_text()) == json.loads(
        (resumed / "metrics.json").read_text()
    )


def test_mirl_rewinds_weights_and_biases_and_keeps_prompts_and_temperatures(photos, tmp_path):
    pruning = {"protocol": "mirl", "rounds": 1, "rate": 0.3}
    run = Run(settings(pruning=pruning), photos, tmp_path / "run", quiet)
    run.go()
    mask = begin_round(run.context, run.pruner, 1)
    start, trained = (
        load_file(tmp_path / f"run/{name}.safetensors") for name in ("start", "round_00/weights")
    )
    as_trained = 0
    for name, p in run.network.named_parameters():
        if name.endswith(("prompt_param", "temperature")):
            assert torch.equal(p, trained[name])
            assert not torch.equal(p, start[name])
            as_trained += 1
        else:
            assert torch.equal(p, start[name] * mask.alive.get(name, torch.tensor(True))), name
    assert as_trained == 3 + sum(hasattr(m, "temperature") for m in run.network.modules())
    assert mask.density == pytest.approx(0.7, abs=1e-3)
    assert mask.has_gains
    last = load_file(tmp_path / "run/round_01/weights.safetensors")
    assert all(not last[n][~keep].any() for n, keep in mask.alive.items())


def test_epochs_and_their_schedule(photos, tmp_path):
    training = {"steps": None, "epochs": 3, "warmup_steps": 0, "warmup_epochs": 2, "learning_rate": 1e-3}
    data = {"tasks": {"noise25": 2, "haze": 1}}
    rates = []
    Run(
        settings(training=training, data=data, pruning={"rounds": 0}),
        photos,
        tmp_path / "run",
        lambda report: rates.append(report["learning_rate"]),
    ).go()
    assert rates == [0.0] * 3 + [1e-3] * 3 + [1e-3] * 3  # 2 clean photos twice and 2 pairs: 3 batches of 2


def test_processes_that_would_not_train_alike_are_refused(photos, tmp_path, monkeypatch):
    """This one is not the first, and the first finds something else."""
    with pytest.raises(Stopped):
        Run(settings(training={"save_every": 2}), photos, tmp_path / "run", stop_at(0, 3)).go()
    run = Run(settings(training={"save_every": 2}), photos, tmp_path / "run", quiet)
    assert read_unfinished(run.context, 0)["step"] == 2
    monkeypatch.setattr(World, "shared", lambda self, find: None)
    with pytest.raises(UserError, match="different steps of round 0"):
        read_unfinished(run.context, 0)
    monkeypatch.setattr(World, "shared", lambda self, find: "another")
    with pytest.raises(UserError, match="first process trains by the engine another"):
        Run(settings(training={"save_every": 2}), photos, tmp_path / "run", quiet)


def test_a_round_ends_early_once_its_mask_has_settled_and_goes_on_the_same(photos, tmp_path):
    training = {"steps": 40, "learning_rate": 1e-6, "validate_every": 2, "save_every": 3}
    config = settings(training=training, pruning={"settled": 0.05, "rounds": 1})
    whole = Run(config, photos, tmp_path / "whole", quiet).go()
    steps = [json.loads((tmp_path / f"whole/round_0{i}/metrics.json").read_text())["steps"] for i in range(2)]
    assert steps == [10, 40]  # five masks alike; the last round is trained to its end
    with pytest.raises(Stopped):
        Run(config, photos, tmp_path / "stopped", stop_at(0, 9)).go()
    resumed = Run(config, photos, tmp_path / "stopped", quiet).go()
    for name in ("weights.safetensors", "mask.safetensors"):
        assert same(load_file(whole / name), load_file(resumed / name))
    unsettled = settings(training=training | {"learning_rate": 1e-2}, pruning={"settled": 1e-4, "rounds": 1})
    Run(unsettled, photos, tmp_path / "moving", quiet).go()
    assert json.loads((tmp_path / "moving/round_00/metrics.json").read_text())["steps"] == 40


def test_a_round_does_not_end_before_the_step_to_rewind_to(photos, tmp_path):
    training = {"steps": 20, "learning_rate": 1e-6, "validate_every": 2}
    Run(
        settings(training=training, pruning={"settled": 0.05, "rewind": 13, "rounds": 1}),
        photos,
        tmp_path,
        quiet,
    ).go()
    assert json.loads((tmp_path / "round_00/metrics.json").read_text())["steps"] == 14


def test_a_finished_run_trains_nothing(photos, tmp_path):
    Run(settings(), photos, tmp_path / "run", quiet).go()

    def fail(report: dict) -> None:
        raise AssertionError("trained again")

    assert Run(settings(), photos, tmp_path / "run", fail).go().name == "round_02"


def test_training_goes_on_from_a_ticket_and_keeps_its_mask(photos, tmp_path):
    config = settings()
    network = Run(config, photos, tmp_path / "first", quiet).network
    generator = torch.Generator().manual_seed(0)
    for name in Mask.full(network).alive:
        p = network.get_parameter(name)
        p.data *= torch.rand(p.shape, generator=generator) < 0.3
    write_ticket(tmp_path / "t.safetensors", network, {})
    values = config.model_dump() | {"network": None, "start": str(tmp_path / "t.safetensors")}
    last = Run(type(config)(**values), photos, tmp_path / "second", quiet).go()
    densities = [Mask(load_file(last.parent / f"round_0{i}/mask.safetensors")).density for i in range(3)]
    assert densities[0] == pytest.approx(Mask.of(network).density)
    assert densities[2] == pytest.approx(densities[0] / 4, abs=1e-3)
    trained = load_file(last.parent / "round_00/weights.safetensors")
    for name, keep in Mask.of(network).alive.items():
        assert not trained[name][~keep].any()
    assert not same(trained, network.state_dict())


def test_pruned_weights_come_back_where_the_source_has_them(photos, tmp_path):
    config = settings(pruning={"rounds": 0})
    source = Run(config, photos, tmp_path / "first", quiet).network
    network, generator = PromptIR(source.config), torch.Generator().manual_seed(0)
    for each, density in ((source, 0.5), (network, 0.3)):
        for name in Mask.full(each).alive:
            p = each.get_parameter(name)
            p.data *= torch.rand(p.shape, generator=generator) < density
        write_ticket(tmp_path / f"{density}.safetensors", each, {})
    values = config.model_dump() | {"network": None, "start": str(tmp_path / "0.3.safetensors")}
    regrow = {"source": str(tmp_path / "0.5.safetensors"), "layers": ["latent.*", "encoder_level3.*"]}

    def begun(folder, **changes):
        return Run(RunConfig(**values | {"regrow": regrow | changes}), photos, tmp_path / folder, quiet)

    last = begun("second").go()
    start, trained = (
        load_file(path) for path in (tmp_path / "second/start.safetensors", last / "weights.safetensors")
    )
    mask = Mask(load_file(last / "mask.safetensors"))
    for name, keep in mask.alive.items():
        before, there = network.get_parameter(name), source.get_parameter(name)
        expected = (
            torch.where(before == 0, there, before)
            if name.startswith(("latent.", "encoder_level3."))
            else before
        )
        assert torch.equal(start[name], expected), name
        assert torch.equal(keep, expected != 0), name
        assert not trained[name][~keep].any(), name

    assert same(begun("second").network.state_dict(), start)  # what is there is not grown again
    with pytest.raises(UserError, match=r"regrow.layers 'latnet.\*' matches no prunable weight"):
        begun("third", layers=["latnet.*"])
    with pytest.raises(UserError, match="another shape than start"):
        begun("third", source="small")
    assert not (tmp_path / "third").exists()


def test_another_config_in_the_same_folder_is_refused(photos, tmp_path):
    Run(settings(), photos, tmp_path / "run", quiet)
    with pytest.raises(UserError, match="other settings"):
        Run(settings(training={"steps": 5}), photos, tmp_path / "run", quiet)


def test_a_run_is_the_same_with_other_memory_and_other_saves(photos, tmp_path):
    whole = Run(settings(), photos, tmp_path / "whole", quiet).go()
    with pytest.raises(Stopped):
        Run(settings(), photos, tmp_path / "run", stop_at(1, 2)).go()
    changed = settings(training={"save_every": 3}, data={"memory": 0})
    assert changed.digest == settings().digest != settings(training={"steps": 5}).digest
    resumed = Run(changed, photos, tmp_path / "run", quiet).go()
    assert same(load_file(whole / "weights.safetensors"), load_file(resumed / "weights.safetensors"))


def test_two_processes_do_not_train_one_run(photos, tmp_path):
    def second(report: dict) -> None:
        with pytest.raises(UserError, match="another process trains this run"):
            Run(settings(), photos, tmp_path / "run", quiet).go()
        raise Stopped

    with pytest.raises(Stopped):
        Run(settings(), photos, tmp_path / "run", second).go()
    Run(settings(), photos, tmp_path / "run", quiet).go()  # the lock went with it


def test_tasks_in_another_order_are_another_run(photos, tmp_path):
    Run(settings(), photos, tmp_path / "run", quiet)
    values = settings().model_dump()
    values["data"]["tasks"] = dict(reversed(values["data"]["tasks"].items()))
    with pytest.raises(UserError, match="other settings"):
        Run(RunConfig(**values), photos, tmp_path / "run", quiet)


def test_a_run_is_of_the_photos_that_it_began_with(photos, tmp_path):
    teacher, other, moved = tmp_path / "teacher.pt", tmp_path / "other", tmp_path / "moved"
    shutil.copytree(photos, other)
    shutil.copytree(photos, moved)
    write_image(other / "clean/3.png", read_image(photos / "clean/0.png"))
    network = PromptIR(settings().network)
    torch.save(network.state_dict(), teacher)
    config = settings(training={"teacher": str(teacher)})
    Run(config, photos, tmp_path / "run", quiet)
    Run(config, moved, tmp_path / "run", quiet)
    with pytest.raises(UserError, match="was begun with other photos"):
        Run(config, other, tmp_path / "run", quiet)
    network.output.weight.data.zero_()
    torch.save(network.state_dict(), teacher)
    with pytest.raises(UserError, match="or another teacher"):
        Run(config, photos, tmp_path / "run", quiet)


def test_a_process_without_the_lock_leaves_partial_files_alone(photos, tmp_path):
    run = Run(settings(), photos, tmp_path / "run", quiet)
    part = tmp_path / "run/.half.part"
    part.touch()
    with RunFolder(run.folder).locked():
        other = Run(settings(), photos, tmp_path / "run", quiet)
        with pytest.raises(UserError, match="another process trains this run"):
            other.go()
        assert part.exists()
    run.go()
    assert not part.exists()


def test_rounds_are_as_long_and_learn_as_fast_as_the_settings_say(photos, tmp_path):
    told = []
    pruning = {"round_steps": 2, "final_steps": 3, "learning_rate": 5e-4, "rounds": 2}
    run = Run(
        settings(training={"steps": 4, "warmup_steps": 1}, pruning=pruning),
        photos,
        tmp_path / "run",
        told.append,
    )
    run.go()
    expected = [
        (i, step + 1, steps, learning_rate(step, steps, peak, 1))
        for i, (steps, peak) in enumerate(((4, 1e-3), (2, 5e-4), (3, 5e-4)))
        for step in range(steps)
    ]
    assert [(r["round"], r["step"], r["steps"], r["learning_rate"]) for r in told] == expected
    assert json.loads((tmp_path / "run/round_01/metrics.json").read_text())["steps"] == 2


def test_a_round_that_goes_on_with_other_threads_says_so(photos, tmp_path):
    with pytest.raises(Stopped):
        Run(settings(), photos, tmp_path / "run", stop_at(0, 3)).go()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(UserWarning, match=f"begun on {threads} threads and goes on on {threads + 1}"):
            Run(settings(), photos, tmp_path / "run", quiet).go()
    finally:
        torch.set_num_threads(threads)


def test_a_corrected_config_is_not_taken_for_another_run(photos, tmp_path):
    values = settings().model_dump() | {"network": None, "start": "nowhere"}
    with pytest.raises(UserError, match="nor a shipped ticket"):
        Run(RunConfig(**values), photos, tmp_path / "run", quiet)
    Run(settings(), photos, tmp_path / "run", quiet)


def test_a_diverging_run_says_so(photos, tmp_path):
    with pytest.raises(UserError, match=r"training diverged .* lower training.learning_rate"):
        Run(settings(training={"learning_rate": 1e30, "steps": 40}), photos, tmp_path / "run", quiet).go()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pruning": {"exempt": ["*"], "rounds": 5}}, "exempt fewer layers"),
        ({"pruning": {"exempt": ["patch_embd.*"]}}, "matches no prunable weight"),
        ({"data": {"clean": "nowhere"}}, "no such folder"),
        ({"data": {"validation_images": 3}}, "validation_images"),
        ({"training": {"patch_size": 32}}, "patch size"),
        (
            {"training": {"steps": None, "epochs": 1, "warmup_steps": 0, "batch_size": 100}},
            "expected at least a batch",
        ),
        ({"pruning": {"exempt": ["*"], "criterion": "latency", "speedup": 2}}, "exempt fewer layers"),
    ],
)
def test_settings_that_do_not_serve_are_refused_before_anything_is_written(photos, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        Run(settings(**change), photos, tmp_path / "run", quiet)
    assert not (tmp_path / "run").exists()


def test_both_engines_train_alike(photos, tmp_path):
    config = settings(pruning={"criterion": "layerwise", "rounds": 1})
    ends = [Run(config, photos, tmp_path / e, quiet, e).go() for e in ("fused", "reference")]
    fused, reference = (load_file(end.parent / "round_00/weights.safetensors") for end in ends)
    for key, want in reference.items():
        torch.testing.assert_close(fused[key], want, atol=1e-4, rtol=0, msg=key)
    masks = [load_file(end / "mask.safetensors") for end in ends]
    # Rounding may decide which of two weights of the same magnitude stays, on which all others of the last
    # round depend a little.
    assert sum(int((keep != masks[1][key]).sum()) for key, keep in masks[0].items()) <= 2
    scores = [json.loads((end / "metrics.json").read_text())["psnr"] for end in ends]
    assert scores[0] == pytest.approx(scores[1], abs=0.05)


def test_the_report_shows_what_a_step_costs_at_each_density(photos, tmp_path):
    with pytest.raises(Stopped):
        Run(settings(), photos, tmp_path / "run", stop_at(1, 2)).go()
    with (tmp_path / "run/log.jsonl").open("a") as log:
        log.write('{"round": 1, "ste')  # a kill in the middle of a line
    Run(settings(), photos, tmp_path / "run", quiet).go()
    rows = [line for line in (tmp_path / "run/report.md").read_text().splitlines() if line.startswith("| ")][
        1:
    ]
    assert [row.split(" | ")[1] for row in rows] == ["100.00%", "50.00%", "25.00%"]
    assert all(float(row.split(" | ")[6].split()[0]) > 0 for row in rows)
    for name in ("rounds", "examples"):
        assert (tmp_path / f"run/{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert f"]({name}.png)" in (tmp_path / "run/report.md").read_text()
    examples = read_image(tmp_path / "run/examples.png")
    assert examples.shape == (
        4 * (24 + 4),
        4 * (40 + 4),
        3,
    )  # a row for each task: degraded, two rounds, clean


def test_patches_that_the_network_cannot_take_are_refused(photos, tmp_path):
    config = settings(network={"unshuffle": 2}, training={"patch_size": 24})
    with pytest.raises(UserError, match="a patch size is 24, and this network takes multiples of 16"):
        Run(config, photos, tmp_path / "run", quiet)


def test_a_run_that_is_out_of_time_stops_after_a_step_and_goes_on_with_the_same_bits(photos, tmp_path):
    config = settings(pruning={"rounds": 1}, training={"save_every": 100})
    whole = Run(config, photos, tmp_path / "whole", quiet).go()
    stops = []
    for _ in range(20):
        try:
            pieces = Run(config, photos, tmp_path / "pieces", quiet).go(minutes=0)
            break
        except OutOfTime as stopped:
            stops.append(str(stopped))
            assert load_network(tmp_path / "pieces/latest.safetensors").config == config.network
    assert stops == [f"round {index}, step {step} of 4" for index in (0, 1) for step in (1, 2, 3)]
    assert same(load_file(whole / "weights.safetensors"), load_file(pieces / "weights.safetensors"))
    assert not (tmp_path / "pieces/latest.safetensors").exists()


def test_a_round_goes_on_by_another_engine_with_a_warning(photos, tmp_path):
    config = settings(pruning={"rounds": 0})
    with pytest.raises(OutOfTime):
        Run(config, photos, tmp_path / "run", quiet, engine="reference").go(minutes=0)
    with pytest.warns(UserWarning, match="begun by the engine reference and goes on by fused"):
        last = Run(config, photos, tmp_path / "run", quiet, engine="fused").go()
    whole = Run(config, photos, tmp_path / "whole", quiet, engine="fused").go()
    one, other = (load_file(folder / "weights.safetensors") for folder in (last, whole))
    assert all(torch.allclose(one[n], other[n], atol=1e-4) for n in one)
