"""Find machine code in which Hopper's tensor cores may read registers that were overwritten.

``wgmma`` reads its first factor while the program goes on. Where that factor lies in registers, ptxas before
CUDA 13.3 may give them to other values before the product has read them (its release notes, and issue 9433 of
Triton). The result is then wrong, and no error is raised.
"""

from __future__ import annotations

import re
from typing import Any

# A product whose first factor is in registers: a second brace in PTX, a second register in machine code.
_FROM_REGISTERS = re.compile(r"wgmma\.mma_async[^;{]*\{[^}]*\}\s*,\s*\{")
_PRODUCT = re.compile(r"\b[HIQB]GMMA\S*\s+R\d+,\s*R(\d+)")
_WAIT = re.compile(r"\bWARPGROUP\.DEPBAR\S*\s+gsb0,\s*0x0\b")
_LEAVE = re.compile(r"\b(?:BRA|BRX|JMP|RET|EXIT|CALL)\b")
_WRITE = re.compile(r"(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s+R(\d+)\b")
_FACTOR = 4  # registers of a first factor, in each thread
_WIDE = re.compile(r"\.128|LD|MMA|TEX|SHFL|ATOM")  # instructions that may write up to four registers
_READS_ONLY = re.compile(r"ST|RED|BAR|[HIQB]GMMA")  # their first register is an address, or adds up in order


def find_hazards(sass: str) -> list[str]:
    """Return the instructions that may overwrite what a product still reads.

    Args:
        sass: Machine code of sm_90, as ``cuobjdump -sass`` or Triton prints it, an instruction a line.

    Returns:
        The instructions. A branch between a product and the wait for it counts, since its target is not
        followed.
    """
    reading: set[int] = set()
    hazards = []
    for line in sass.splitlines():
        if product := _PRODUCT.search(line):
            first = int(product.group(1))
            reading |= set(range(first, first + _FACTOR))
        elif _WAIT.search(line):
            reading.clear()
        elif reading and (_LEAVE.search(line) or reading & _written(line)):
            hazards.append(line.strip())
    return hazards


def _written(line: str) -> set[int]:
    """Return the registers that an instruction may write, or too many of them."""
    match = _WRITE.search(line)
    if match is None or _READS_ONLY.match(match.group(1)):
        return set()
    first = int(match.group(2))
    return set(range(first, first + (4 if _WIDE.search(match.group(1)) else 2)))


def hazards_of(compiled: Any) -> list[str]:
    """Return `find_hazards` of a kernel that Triton compiled; none where no first factor is in registers.

    Args:
        compiled: What `triton.compile` returns.
    """
    if not _FROM_REGISTERS.search(compiled.asm.get("ptx", "")):
        return []
    return find_hazards(compiled.asm["sass"])
