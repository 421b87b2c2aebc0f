"""Test that code which overwrites what Hopper's tensor cores still read is found. The code is made up."""

from types import SimpleNamespace

import pytest

from mirl_kernels.core.triton.hazards import find_hazards, hazards_of

PRODUCTS = """
    HGMMA.64x32x16.F32 R24, R40, gdesc[UR8], R24;
    UMOV UR10, UR6;
    HGMMA.64x32x16.F32 R24, R44, gdesc[UR8], R24, gsb0;
"""
WAIT = "    WARPGROUP.DEPBAR.LE gsb0, 0x0;\n"
HARMLESS = """
    FADD R39, R40, R44;
    STS.128 [R40], R44;
    STG.E R43, R20;
    LDS.128 R48, [R2];
    ISETP.GE.AND P0, PT, R41, 0x1, PT;
    BAR.SYNC.DEFER_BLOCKING 0x0;
"""


def test_what_waits_for_its_products_is_no_hazard():
    assert find_hazards(PRODUCTS + WAIT + "FADD R40, R1, R2;\nBRA LBB5;") == []
    assert find_hazards(PRODUCTS + HARMLESS.replace("R39", "R37") + WAIT) == []


@pytest.mark.parametrize(
    "instruction",
    [
        "FADD R47, R1, R2;",
        "--:-:-:-:1 MOV R40, R3;",
        "@!P0 IMAD.WIDE R38, R1, R2, R46;".replace("R38", "R39"),
        "LDS.128 R37, [R2];",
        "LDSM.16.MT88.4 R44, [R10];",
        "@P0 BRA LBB5;",
        "EXIT;",
        "WARPGROUP.DEPBAR.LE gsb0, 0x1;\nMOV R45, R3;",
    ],
)
def test_what_may_overwrite_a_factor_before_the_wait_is_a_hazard(instruction):
    (found,) = find_hazards(PRODUCTS + instruction + "\n" + WAIT)
    assert found == instruction.splitlines()[-1]


def test_factors_in_shared_memory_are_no_hazard():
    assert find_hazards("HGMMA.64x32x16.F32 R24, gdesc[UR8], R24, gsb0;\nMOV R24, R3;\nBRA LBB5;") == []


def test_only_code_with_factors_in_registers_is_disassembled():
    shared = "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {%r1, %r2}, %rd1, %rd2, %p7, 1, 1, 0, 0;"
    registers = "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {%r1,%r2}, {%r3,%r4}, %rd2, %p7, 1, 1, 0;"
    assert hazards_of(SimpleNamespace(asm={"amdgcn": "v_mfma"})) == []
    assert hazards_of(SimpleNamespace(asm={"ptx": shared})) == []
    code = PRODUCTS + "MOV R45, R3;\n"
    assert hazards_of(SimpleNamespace(asm={"ptx": registers, "sass": code})) == ["MOV R45, R3;"]
