"""Train, prune, stop and convert networks of other architectures than PromptIR by a run."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import SETTINGS, settings

from mirl_sparse import UserError, convert, load_restorer
from mirl_training.pruning import Mask
from mirl_training.runs import OutOfTime, Run, RunConfig

NAFNET = {"width": 16, "enc_blk_nums": [1, 1], "middle_blk_num": 1, "dec_blk_nums": [1, 1]}
RESTORMER = {"dim": 8, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "heads": [1, 2, 2, 2]}
DNCNN = {"in_nc": 3, "out_nc": 3, "nc": 16, "nb": 6, "act_mode": "BR"}
SWINIR = {"img_size": 32, "window_size": 8, "upscale": 1, "img_range": 1.0, "depths": [2], "embed_dim": 12}
SWINIR |= {"num_heads": [2], "mlp_ratio": 2, "upsampler": "", "resi_connection": "1conv"}


def of(architecture: str, network: dict, **changes: dict) -> RunConfig:
    values = settings(**changes).to_dict()
    return RunConfig(**values | {"architecture": architecture, "network": network})


def quiet(report: dict) -> None:
    pass


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    ("architecture", "network"), [("NAFNet", NAFNET), ("Restormer", RESTORMER), ("DnCNN", DNCNN)]
)
def test_rounds_of_another_architecture_end_in_a_ticket_that_restores_photos(
    photos, tmp_path, architecture, network
):
    run = Run(of(architecture, network), photos, tmp_path / "run", quiet)
    last = run.go()
    weights, mask = load_file(last / "weights.safetensors"), Mask(load_file(last / "mask.safetensors"))
    assert mask.density == pytest.approx(0.25, abs=1e-2)
    assert all(not weights[n][~keep].any() for n, keep in mask.alive.items())
    assert set(json.loads((last / "metrics.json").read_text())["psnr"]) == {"noise25", "rain", "haze", "fog"}
    assert "an image" in (tmp_path / "run/report.md").read_text()

    ticket = tmp_path / "t.safetensors"
    convert(last / "weights.safetensors", ticket)
    image = torch.rand(1, 3, 32, 40)
    restorer = load_restorer(ticket)
    trained = run.context.architecture.empty()
    trained.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(restorer(image), trained(image), atol=1e-5, rtol=0)


def test_a_stopped_run_of_a_network_with_batch_norms_goes_on_to_the_very_same_weights(photos, tmp_path):
    config = of("DnCNN", DNCNN, pruning={"rounds": 1, "rewind": 2})
    whole = Run(config, photos, tmp_path / "whole", quiet).go()
    for _ in range(20):
        try:
            resumed = Run(config, photos, tmp_path / "stopped", quiet).go(minutes=0)
            break
        except OutOfTime:
            continue
    first, second = (load_file(folder / "weights.safetensors") for folder in (whole, resumed))
    assert any(name.endswith("running_var") for name in first)
    assert same(first, second)
    with safe_open(resumed / "weights.safetensors", "pt") as file:
        assert file.metadata() == {"architecture": "DnCNN"}


def test_a_ticket_of_another_architecture_is_trained_on_under_its_mask(photos, tmp_path):
    last = Run(of("NAFNet", NAFNET, pruning={"rounds": 1}), photos, tmp_path / "first", quiet).go()
    ticket = tmp_path / "t.safetensors"
    convert(last / "weights.safetensors", ticket)
    values = settings(pruning={"rounds": 0}).to_dict() | {"network": None, "start": str(ticket)}
    run = Run(RunConfig(**values), photos, tmp_path / "second", quiet)
    end, mask = load_file(run.go() / "weights.safetensors"), load_file(last / "mask.safetensors")
    assert same(load_file(tmp_path / "second/round_00/mask.safetensors"), mask)
    assert not same(end, load_file(last / "weights.safetensors"))


def test_the_criterion_latency_makes_another_architecture_faster_by_its_own_clock(photos, tmp_path):
    goal = {"criterion": "latency", "speedup": 1.5, "rounds": 1}
    run = Run(of("Restormer", RESTORMER, pruning=goal), photos, tmp_path / "run", quiet)
    run.go()
    assert run.pruner.prices
    from mirl_sparse.performance.cost import CostModel

    clock = run.context.architecture.clock(run.context.architecture.empty(), CostModel(run.pruner.prices))
    masks = [Mask(load_file(tmp_path / f"run/round_0{i}/mask.safetensors")) for i in (0, 1)]
    assert clock.seconds(masks[1]) <= clock.seconds(masks[0]) / 1.5


@pytest.mark.parametrize(
    ("architecture", "network", "message"),
    [
        ("NAFNett", NAFNET, "architecture is 'NAFNett'; expected PromptIR or what spandrel"),
        ("NAFNet", {"widht": 16}, "NAFNet does not take {'widht': 16}"),
        ("DnCNN", DNCNN | {"in_nc": 1, "out_nc": 1}, "takes 1 channels, gives 1"),
        ("Compact", {"upscale": 2}, "enlarges 2x"),
        ("DRUNet", {"in_nc": 4, "out_nc": 3, "nc": [8, 8, 8, 8], "nb": 2}, "DRUNet takes more than an image"),
        ("SwinIR", SWINIR | {"img_range": 255.0}, "built again from"),
    ],
)
def test_networks_that_a_run_cannot_train_are_refused_in_one_line(
    photos, tmp_path, architecture, network, message
):
    with pytest.raises(UserError) as error:
        Run(of(architecture, network), photos, tmp_path / "run", quiet)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_patches_that_a_network_does_not_take_are_refused(photos, tmp_path):
    config = of("SwinIR", SWINIR, training={"patch_size": 8})
    with pytest.raises(UserError, match="a patch size is 8, and SwinIR takes 16 next"):
        Run(config, photos, tmp_path / "run", quiet)


def test_promptir_is_an_architecture_too_and_architectures_have_digests_of_their_own():
    assert RunConfig(**SETTINGS | {"architecture": "PromptIR"}) == settings()
    assert of("NAFNet", NAFNET).digest != of("NAFNet", NAFNET | {"width": 8}).digest
    assert of("NAFNet", {}).digest != of("DnCNN", {}).digest
    with pytest.raises(ValueError, match="architecture is NAFNet without network"):
        RunConfig(**SETTINGS | {"architecture": "NAFNet", "network": None, "start": "small"})
