"""Write a shipped ticket as a dense network in ONNX, for the benchmark in the browser.

python -m benchmarks.web.export small --size 256 -o dense.onnx
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import torch

from mirl_sparse.tickets import find_ticket, load_network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ticket")
    parser.add_argument("--size", type=int, default=256, help="side of the square image")
    parser.add_argument("-o", "--output", default="dense.onnx")
    options = parser.parse_args()
    network = load_network(find_ticket(options.ticket)).eval()
    image = torch.rand(1, 3, options.size, options.size)
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["restored"]}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # tracing warns that the size is fixed
        torch.onnx.export(network, (image,), options.output, dynamo=False, opset_version=17, **names)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
