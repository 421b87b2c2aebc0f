"""Tickets are written and read back; what is no ticket, or a damaged one, is refused in one line."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from mirl_sparse import SparseRestorer, UserError
from mirl_sparse.tickets.file import (
    FORMAT,
    TicketError,
    pack,
    read_ticket,
    unpack,
    write_ticket,
)


def test_a_written_ticket_reads_back_the_same(network_of_any_resolution, tmp_path):
    network, path = network_of_any_resolution, tmp_path / "t.safetensors"
    write_ticket(path, network, {"a": 1})
    loaded, statistics = read_ticket(path)
    assert statistics == {"a": 1}
    assert loaded.config == replace(network.config, unused_layers=False)
    expected = network.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in loaded.state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]


def test_what_is_no_ticket_is_refused(network, tmp_path):
    write_ticket(tmp_path / "t.safetensors", network, {})
    whole = (tmp_path / "t.safetensors").read_bytes()
    for count in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:count])
        with pytest.raises(UserError, match="cut"):
            SparseRestorer.from_pretrained(tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match="no such file"):
        SparseRestorer.from_pretrained("nothing")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_blocks": [10**9, 1, 1, 1]}, "has 1000000004 blocks"),
        ({"dim": 4096}, "patch_embed.proj.weight is .*; expected"),
        ({"prompt_sizes": [10**9] * 3}, "no ticket"),
        ({"ffn_expansion": math.inf}, "no ticket"),
        ({"ffn_expansion": math.nan}, "no ticket"),
    ],
)
def test_a_config_that_asks_for_more_than_the_file_holds_is_refused_before_memory_is(
    network, config, message
):
    stored = load(pack(network, {}))
    config = json.dumps(network.config.to_dict() | {"unused_layers": False} | config)
    with pytest.raises(TicketError, match=message):
        unpack(save(stored, {"format": FORMAT, "config": config}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"x\n\x1b[2J": torch.zeros(1)}, r"no such network has, x\\n\\x1b\[2J$"),
        (
            lambda t: t | {"output.weight.mask": torch.zeros(1, dtype=torch.uint8)},
            "expected a bit for each of",
        ),
        (lambda t: t | {"output.weight.mask": t["output.weight.mask"] * 0}, "values for 0 alive weights"),
        (lambda t: t | {"output.weight.values": t["output.weight.values"] * math.nan}, "not finite"),
        (lambda t: t | {"prompt1.prompt_param": t["prompt1.prompt_param"].half()}, "expected finite float32"),
        (
            lambda t: t | {"prompt1.prompt_param": t["prompt1.prompt_param"][:, :1]},
            "prompt1.prompt_param is .*; expected",
        ),
    ],
)
def test_a_damaged_ticket_says_what_is_damaged_in_one_line(network, change, message):
    stored = change(load(pack(network, {})))
    config = json.dumps(network.config.to_dict() | {"unused_layers": False})
    with pytest.raises(TicketError, match=message) as caught:
        unpack(save(stored, {"format": FORMAT, "config": config}))
    assert str(caught.value).isprintable()
