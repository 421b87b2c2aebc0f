import pytest

pytest.importorskip("pyarrow", reason="the extra batch is not installed")
pytest.importorskip("fsspec", reason="the extra batch is not installed")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder is an empty one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
