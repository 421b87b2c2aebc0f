"""Ask how much memory is free."""

from mirl_sparse import memory


def test_the_limit_of_a_container_bounds_the_available_memory(monkeypatch, tmp_path):
    machine = memory.available_memory()
    assert machine is not None
    files = {
        "max": f"{10**9}",
        "current": f"{3 * 10**8}",
        "stat": "anon 5\nfile 7\ninactive_file 100000000\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    group = memory._ControlGroup(*(str(tmp_path / name) for name in files), "inactive_file")
    monkeypatch.setattr(memory, "_CONTROL_GROUPS", [group])
    assert memory.available_memory() == min(machine, 8 * 10**8)
    (tmp_path / "max").write_text("max\n")
    assert memory.available_memory() > 8 * 10**8
