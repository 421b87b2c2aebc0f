"""The Triton kernels compiled for GPUs that are not here: what spills, whether shared memory suffices, whether tensor cores are used."""

import os

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("triton interprets in this process", allow_module_level=True)

from mirl_kernels._triton.offline import SHARED, compile_for
from mirl_kernels._triton.product import pointwise_kernel
from mirl_kernels._triton.taps import mix_kernel
from mirl_kernels.conv.triton import conv_kernel
from mirl_kernels.mdta.triton import compose_kernel, gram_kernel
from mirl_kernels.prompt.triton import mean_kernel, mixture_kernel

_LONG = {"x_batch", "y_batch", "residual_batch", "hidden_batch", "weight_batch"}
_INTEGERS = {"start", "column", "row", "slot", "order", "channel", "down", "right"}
_FLOATS = {"bias", "taps", "tap_bias", "gram", "norms", "temperature", "project_out", "mean", "linear", "prompts"}
_PRODUCT = {"ROWS": 16, "BLOCK_K": 16, "BLOCK_P": 64, "PRECISION": "ieee"}

# name: kernel, warps, whether it multiplies on tensor cores, constants (a pointer that is not there is None)
KERNELS = {
    "norm and product": (pointwise_kernel, 4, True, {
        **_PRODUCT, "NORM": True, "CENTRED": True, "BIAS": True, "BLOCK_C": 32}),
    "product": (pointwise_kernel, 4, True, {
        **_PRODUCT, "NORM": False, "CENTRED": True, "BIAS": False, "bias": None, "BLOCK_C": 32}),
    **{f"taps, {'gate, ' * gate}{block} channels": (mix_kernel, 8, True, {
        "GATE": bool(gate), "TAP_BIAS": False, "BIAS": False, "tap_bias": None, "bias": None,
        "BLOCK_H": 16, "BLOCK_C": block, "BLOCK_P": 32, "PRECISION": "ieee"}) for gate in (0, 1) for block in (16, 32, 64)},
    **{f"Gram of {block} channels": (gram_kernel, 8, True, {
        "TAP_BIAS": False, "tap_bias": None, "BLOCK_C": block, "BLOCK_P": 32, "PRECISION": "ieee"}) for block in (16, 32, 64)},
    **{f"compose {block} channels": (compose_kernel, 8, False, {
        "BLOCK_I": 16, "BLOCK_J": block, "BLOCK_O": 32, "PRECISION": "ieee"}) for block in (16, 64, 256)},
    **{f"conv, shuffle {shuffle}": (conv_kernel, 4, True, {
        **_PRODUCT, "SHUFFLE": shuffle, "BIAS": False, "RESIDUAL": False, "bias": None, "residual": None})
       for shuffle in (1, 2, -2)},
    "means": (mean_kernel, 4, False, {"BLOCK_P": 1024}),
    "mixture": (mixture_kernel, 4, False, {"BLOCK_N": 8, "BLOCK_C": 64, "BLOCK_P": 256}),
}  # fmt: skip


# Bytes that a thread still spills, where ptxas settles for fewer registers than it may use: none may join these, and what no longer
# spills must leave.
SPILLS = {
    ("sm_80", "fp16", "Gram of 16 channels"): 8, ("sm_80", "bf16", "Gram of 16 channels"): 8,
    ("sm_80", "bf16", "Gram of 32 channels"): 20, ("sm_80", "fp32", "taps, gate, 32 channels"): 24,
    ("sm_86", "fp16", "taps, gate, 64 channels"): 12, ("sm_86", "bf16", "taps, gate, 64 channels"): 12,
    ("sm_89", "fp16", "taps, gate, 64 channels"): 12, ("sm_89", "bf16", "taps, gate, 64 channels"): 12,
    ("sm_100", "fp32", "taps, gate, 32 channels"): 12, ("sm_100", "fp32", "compose 64 channels"): 16,
}  # fmt: skip


def types(kernel, kind: str) -> dict[str, str]:
    """The types of a kernel's arguments, for features of one kind."""
    known = {}
    for name in kernel.arg_names:
        if name in _LONG:
            known[name] = "i64"
        elif name in _INTEGERS and not (name == "channel" and kernel is not conv_kernel):
            known[name] = "*i32"
        elif name in _FLOATS:
            known[name] = "*fp32"
        else:
            known[name] = f"*{kind}" if name in ("x", "y", "value", "weight", "hidden", "residual") else "i32"
    return known | {"eps": "fp32"}


@pytest.mark.parametrize(("architecture", "kind"), [
    pytest.param(a, k, marks=[] if a in ("sm_90", "gfx942") and k == "fp16" else pytest.mark.slow)
    for a in SHARED for k in ("fp16", "bf16", "fp32")
])  # fmt: skip
def test_every_kernel_compiles_and_spills_only_what_is_known(architecture, kind):
    faults = []
    for name, (kernel, warps, multiplies, constants) in KERNELS.items():
        done = compile_for(architecture, kernel, types(kernel, kind), constants, warps)
        if done.spilled != SPILLS.get((architecture, kind, name), 0):
            faults.append(f"{name}: {done.spilled} spilled, {done.registers} registers")
        if done.shared > SHARED[architecture]:
            faults.append(f"{name}: {done.shared} bytes of shared memory of {SHARED[architecture]}")
        if multiplies and kind != "fp32" and not done.tensor:
            faults.append(f"{name}: no tensor-core instruction")
    assert not faults, "\n".join(faults)
