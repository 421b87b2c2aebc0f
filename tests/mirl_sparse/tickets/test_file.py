"""From checkpoint to ticket to restorer, on a small network."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from mirl_sparse import SparseRestorer, UserError
from mirl_sparse.conversion import convert
from mirl_sparse.tickets.file import (
    FORMAT,
    TicketError,
    pack,
    read_ticket,
    remove_dead_channels,
    unpack,
    write_ticket,
)


def test_dead_channels_leave_without_a_trace(network):
    x = torch.rand(1, 3, 24, 32)
    before = network.double()(x.double())
    assert remove_dead_channels(network) > 0
    assert remove_dead_channels(network) == 0  # a fixpoint
    torch.testing.assert_close(network(x.double()), before, atol=1e-12, rtol=0)


def test_round_trip(network, tmp_path):
    path = tmp_path / "t.safetensors"
    write_ticket(path, network, {"a": 1})
    loaded, statistics = read_ticket(path)
    assert statistics == {"a": 1}
    expected = network.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in loaded.state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (8, 8), (24, 40), (1, 50), (65, 33)])
@pytest.mark.parametrize("batch", [1, 3])
def test_any_size_equals_the_dense_network(network, size, batch):
    x = torch.rand(batch, 3, *size)
    expected = SparseRestorer(network, "reference")(x)
    restorer = SparseRestorer(network, "cpu")
    actual = restorer(x)
    assert actual.shape == x.shape
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    assert torch.equal(restorer(x), actual)  # deterministic


def test_convert_writes_what_restores_alike(network, tmp_path):
    torch.save({"state_dict": {f"net.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "c.ckpt")
    report = convert(tmp_path / "c.ckpt", tmp_path / "t.safetensors")
    assert report.removed > 0
    assert 0 < report.statistics["density"] < 0.15
    x = torch.rand(1, 3, 30, 20)
    expected = SparseRestorer(network, "reference")(x)
    actual = SparseRestorer.from_pretrained(tmp_path / "t.safetensors")(x)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_the_shipped_ticket_restores():
    """A noisy picture comes out with a tenth of its error."""
    y, x = np.mgrid[:72, :100] / 100
    clean = np.stack([y, x, (x - y) ** 2], -1) * 180 + 40
    noisy = (
        (clean + np.random.default_rng(0).normal(0, 25, clean.shape)).clip(0, 255).round().astype(np.uint8)
    )
    restored = SparseRestorer.from_pretrained().restore(noisy)
    before, after = (((image - clean) ** 2).mean() for image in (noisy, restored))
    assert after < before / 10


def test_what_is_no_ticket_is_refused(network, tmp_path):
    write_ticket(tmp_path / "t.safetensors", network, {})
    whole = (tmp_path / "t.safetensors").read_bytes()
    for count in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:count])
        with pytest.raises(UserError, match="cut"):
            SparseRestorer.from_pretrained(tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match="no such file"):
        SparseRestorer.from_pretrained("nothing")


@pytest.mark.parametrize(("config", "message"), [
    ({"num_blocks": [10**9, 1, 1, 1]}, "has 1000000004 blocks"),
    ({"dim": 4096}, "patch_embed.proj.weight is .*; expected"),
    ({"prompt_sizes": [10**9] * 3}, "no ticket"),
    ({"ffn_expansion": math.inf}, "no ticket"),
    ({"ffn_expansion": math.nan}, "no ticket"),
])  # fmt: skip
def test_a_config_that_asks_for_more_than_the_file_holds_is_refused_before_memory_is(
    network, config, message
):
    stored = load(pack(network, {}))
    config = json.dumps(network.config.to_dict() | {"unused_layers": False} | config)
    with pytest.raises(TicketError, match=message):
        unpack(save(stored, {"format": FORMAT, "config": config}))


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t | {"x\n\x1b[2J": torch.zeros(1)}, r"no such network has, x\\n\\x1b\[2J$"),
    (lambda t: t | {"output.weight.mask": torch.zeros(1, dtype=torch.uint8)}, "expected a bit for each of"),
    (lambda t: t | {"output.weight.mask": t["output.weight.mask"] * 0}, "values for 0 alive weights"),
    (lambda t: t | {"output.weight.values": t["output.weight.values"] * math.nan}, "not finite"),
    (lambda t: t | {"prompt1.prompt_param": t["prompt1.prompt_param"].half()}, "expected finite float32"),
    (lambda t: t | {"prompt1.prompt_param": t["prompt1.prompt_param"][:, :1]}, "prompt1.prompt_param is .*; expected"),
])  # fmt: skip
def test_a_damaged_ticket_says_what_is_damaged_in_one_line(network, change, message):
    stored = change(load(pack(network, {})))
    config = json.dumps(network.config.to_dict() | {"unused_layers": False})
    with pytest.raises(TicketError, match=message) as caught:
        unpack(save(stored, {"format": FORMAT, "config": config}))
    assert str(caught.value).isprintable()
