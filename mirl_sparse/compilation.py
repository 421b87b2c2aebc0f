"""Compile a ticket to a program: one file that the C++ runtime runs without Python."""

from __future__ import annotations

from pathlib import Path

from mirl_kernels.core import cpu, native
from mirl_sparse.errors import UserError
from mirl_sparse.files import write_whole
from mirl_sparse.program import SUFFIX
from mirl_sparse.runtime.cpu import packed_steps
from mirl_sparse.runtime.program_file import assemble
from mirl_sparse.tickets import find_ticket, is_network_ticket, is_ticket, load_network


def compile_ticket(source: str | Path, target: str | Path) -> int:
    """Write the program of a ticket, which any little-endian processor runs.

    Args:
        source: A ticket file, or the name of a shipped ticket.
        target: The program; another file than the ticket.

    Returns:
        The size of the program in bytes.

    Raises:
        UserError: If the ticket cannot be read, or the program cannot be written.
        BackendError: If the C++ kernels are not there; they check the program.
    """
    file, target = find_ticket(source), Path(target)
    if file.suffix == SUFFIX:
        raise UserError(f"{file}: is a program already; give the ticket that it was made of")
    if not is_ticket(file):
        raise UserError(f"{file}: is no ticket; run mirl-sparse convert first")
    if target.exists() and target.samefile(file):
        raise UserError(f"{target}: is the ticket itself; give another -o")
    if is_network_ticket(file):
        raise UserError(
            f"{file}: is a ticket of another network than PromptIR, for which there are no programs;"
            " mirl-sparse restore takes it as it is"
        )
    network = load_network(file)
    with cpu.packed_for_any_processor():
        words = assemble(packed_steps(network), network.config.multiple)
    native.Program(words.data_ptr(), 4 * len(words), words)
    data = words.numpy().tobytes()
    write_whole(target, data)
    return len(data)
