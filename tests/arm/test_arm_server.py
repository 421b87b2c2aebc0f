"""The server of ``make test-arm`` uses the memory of its client, here by functions of its C library."""

import ctypes
import mmap

import pytest
import torch

pytest.importorskip("arm_server", reason="make test-arm runs this")
from arm_server import ArmFunction, ArmLibrary, ArmServer, server

PAGE = mmap.PAGESIZE


def call(name: str, *arguments: int) -> int:
    return server().call(server().find(name), *arguments)


@pytest.mark.parametrize("size", [1, PAGE, 3 * PAGE + 5, 40 * PAGE])
def test_memory_is_read_and_written_across_pages(size):
    source = torch.randint(256, (size,), dtype=torch.uint8)
    memory = torch.zeros(size + 200, dtype=torch.uint8)
    call("memcpy", memory.data_ptr() + 100, source.data_ptr(), size)
    assert torch.equal(memory[100:-100], source)
    assert not memory[:100].any()
    assert not memory[-100:].any()


def test_a_call_sees_what_was_written_after_the_call_before():
    text = ctypes.create_string_buffer(b"kernel")
    assert call("strlen", ctypes.addressof(text)) == 6
    text.value = b"ARM"
    assert call("strlen", ctypes.addressof(text)) == 3


def test_memory_that_the_client_lacks_ends_the_server_and_another_takes_over(capfd):
    first = ArmServer()
    with pytest.raises(RuntimeError, match="the ARM server ended with 1"):
        first.call(first.find("strlen"), 8)
    assert "memory that neither it nor its caller has" in capfd.readouterr().err
    assert ArmLibrary().mirl_isa() == b"portable"


def test_the_code_is_that_of_another_processor():
    (platform := ArmFunction("getauxval")).restype = ctypes.c_char_p
    assert platform(ctypes.c_int64(15)) == b"aarch64"  # AT_PLATFORM
