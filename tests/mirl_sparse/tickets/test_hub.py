"""Push tickets to a stand-in for the Hugging Face Hub, and read them from it."""

import json
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("huggingface_hub")
from hub_stand_in import Hub, Repository, commit_name

from mirl_sparse.architectures.image_network import is_available

TOKEN = "hf_secret"


@pytest.fixture
def hub():
    server = Hub(TOKEN)
    server.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def python(hub, tmp_path):
    """Run lines of Python in a process of its own, since the library reads its environment once."""

    def run(lines, endpoint=hub.url, token=TOKEN):
        environment = {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": ":".join(filter(None, sys.path)),
        } | ({"HF_TOKEN": token} if token else {})
        script = "from mirl_sparse import SparseRestorer\n" + textwrap.dedent(lines)
        command = [sys.executable, "-c", script]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)

    return run


@pytest.mark.slow
def test_what_is_pushed_or_saved_is_what_from_pretrained_returns(hub, python, tmp_path):
    done = python(
        """
        import torch
        image = torch.rand(1, 3, 24, 40)
        restorer = SparseRestorer.from_pretrained("small")
        restorer.save_pretrained("saved")
        assert torch.equal(SparseRestorer.from_pretrained("saved")(image), restorer(image))
        print(restorer.push_to_hub("user/ticket", private=True))
        again = SparseRestorer.from_pretrained("user/ticket")
        assert torch.equal(restorer(image), again(image))
        SparseRestorer.from_pretrained("user/ticket")
        with torch.no_grad():
            restorer.network.output.weight.mul_(2)
        restorer.push_to_hub("user/ticket")
        assert not torch.equal(SparseRestorer.from_pretrained("user/ticket")(image), again(image))
        first = SparseRestorer.from_pretrained("user/ticket@COMMIT")
        assert torch.equal(first(image), again(image))
    """.replace("COMMIT", commit_name(1))
    )
    assert not done.returncode, done.stderr
    assert done.stdout.startswith(f"{hub.url}/user/ticket/commit/")
    assert hub.downloads.count("ticket.safetensors") == 2  # one of each content
    repository = hub.repositories["user/ticket"]
    assert repository.private
    files = repository.files("main")
    assert set(files) == {path.name for path in (tmp_path / "saved").iterdir()}
    card = files["README.md"].decode()
    assert "library_name: mirl-sparse" in card
    assert "--ticket user/ticket" in card
    statistics = json.loads(files["config.json"])["statistics"]
    assert f"{statistics['density']:.1%} of the prunable weights" in card
    unconnected = python(
        """
        print(SparseRestorer.from_pretrained("user/ticket").network.config.dim)
        SparseRestorer.from_pretrained("user/other")
        """,
        endpoint="http://127.0.0.1:9",
    )
    assert unconnected.stdout == "24\n"
    assert unconnected.stderr.endswith("user/other: was never downloaded, and the Hub cannot be reached\n")


@pytest.mark.slow
def test_a_model_card_that_is_there_stays_as_it_is(hub, python):
    hub.repositories["user/mine"] = Repository(False, [{"README.md": b"my words"}])
    done = python("""
        SparseRestorer.from_pretrained("small").push_to_hub("user/mine")
    """)
    assert not done.returncode, done.stderr
    files = hub.repositories["user/mine"].files("main")
    assert files["README.md"] == b"my words"
    assert "ticket.safetensors" in files


@pytest.mark.slow
@pytest.mark.skipif(not is_available(), reason="needs spandrel")
def test_tickets_of_other_architectures_are_shared_too(hub, python):
    done = python("""
        import torch
        from mirl_sparse import load_restorer
        from mirl_sparse.architectures.image_network import new_network
        from mirl_sparse.sparsification import NetworkRestorer
        network = new_network("NAFNet", {"width": 8, "enc_blk_nums": [1], "dec_blk_nums": [1]})
        for p in network.parameters():
            p.mul_(torch.rand(p.shape) < 0.5)
        restorer = NetworkRestorer(network)
        restorer.save_pretrained("saved")
        restorer.push_to_hub("user/nafnet")
        image = torch.rand(1, 3, 24, 40)
        for source in "saved", "user/nafnet":
            assert torch.equal(load_restorer(source)(image), restorer(image))
    """)
    assert not done.returncode, done.stderr
    files = hub.repositories["user/nafnet"].files("main")
    density = json.loads(files["config.json"])["statistics"]["density"]
    assert 0.4 < density < 0.6
    assert f"{density:.1%} of the prunable weights. mirl-sparse runs" in files["README.md"].decode()


def test_what_cannot_be_downloaded_is_said_in_one_line(hub, python, tmp_path):
    hub.repositories |= {"user/private": Repository(True), "user/empty": Repository(False)}
    (tmp_path / "tickets").mkdir()
    done = python(
        """
        from mirl_sparse import UserError
        sources = "user/none", "user/private", "user/empty", "user/empty@v2", "tickets/mine", "no/x.pt"
        for source in sources:
            try:
                SparseRestorer.from_pretrained(source)
            except UserError as error:
                print(error)
        """,
        token=None,
    )
    assert done.stdout.splitlines() == [
        "user/none: no such file, nor a repository; if it is private, run hf auth login",
        "user/private: no such file, nor a repository; if it is private, run hf auth login",
        "user/empty: the repository holds no ticket.safetensors; expected one of mirl-sparse",
        "user/empty: the repository has no such revision",
        "tickets/mine: no such file, nor a shipped ticket (haze, small)",  # the Hub is not asked
        "no/x.pt: no such file, nor a shipped ticket (haze, small)",
    ]
