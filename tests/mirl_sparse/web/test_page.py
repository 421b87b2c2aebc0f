"""The page as Python puts it together and serves it; tests/web runs it in a browser."""

import base64
import re
import threading
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from mirl_sparse.errors import UserError
from mirl_sparse.web.build import build
from mirl_sparse.web.server import make_server

MODULES = ("simd.wasm", "simd-threads.wasm", "relaxed.wasm", "relaxed-threads.wasm")


@pytest.fixture
def built(tmp_path):
    wasm = tmp_path / "wasm"
    wasm.mkdir()
    for name in MODULES:
        (wasm / name).write_bytes(name.encode())
    ticket = tmp_path / "small.mirl"
    ticket.write_bytes(b"\0ticket\xff")
    build(tmp_path / "page", wasm, ticket)
    return tmp_path / "page"


@pytest.fixture
def address(built):
    with make_server(built) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_modules_and_ticket_are_embedded(built):
    for name, content in [("ticket", b"\0ticket\xff"), *((name, name.encode()) for name in MODULES)]:
        text = (built / "data" / f"{name}.js").read_text()
        found = re.fullmatch(r'export default "(.*)";\n', text)
        assert found and base64.b64decode(found[1]) == content


def test_each_import_of_the_page_is_there(built):
    for script in built.rglob("*.js"):
        for target in re.findall(r'(?:from|import) "(\./[^"]+)"', script.read_text()):
            assert (script.parent / target).is_file(), f"{script} imports {target}"


def test_a_missing_module_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UserError, match=r"simd\.wasm is missing; `make web`"):
        build(tmp_path / "page", tmp_path, tmp_path / "small.mirl")
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize(
    ("path", "kind"), [("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")]
)
def test_files_are_served_with_their_type_and_the_headers_for_threads(address, path, kind):
    with urlopen(address + path) as response:
        assert response.headers["Content-Type"].startswith(kind)
        assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert response.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'; connect-src 'none'" in policy and "frame-ancestors 'none'" in policy


@pytest.mark.parametrize("path", ["/none.js", "/../small.mirl", "/%2e%2e/small.mirl", "/data/"])
def test_nothing_else_is_served(address, path):
    with pytest.raises(HTTPError, match="404"):
        urlopen(address + path)


def test_a_page_that_is_not_built_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="run `make web`"):
        make_server(tmp_path)


def test_a_port_that_is_taken_is_an_error(built):
    with make_server(built) as server, pytest.raises(UserError, match="leave out --port"):
        make_server(built, server.server_address[1])
