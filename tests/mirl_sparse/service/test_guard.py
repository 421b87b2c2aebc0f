"""Who may use the service, and how strict browsers are with its answers."""

import asyncio

import pytest
from asgi import ask
from services import HeldRestorer, encoded

from mirl_sparse.service import Access, Limits, Service, make_app

PHOTO = encoded()


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1"])
def test_the_names_of_this_machine_are_taken(app, host):
    assert asyncio.run(ask(app, "/health", headers={"Host": host})).status == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8000", "", "[", "localhost@evil"])
@pytest.mark.parametrize(("path", "body"), [("/", None), ("/restore", PHOTO), ("/metrics", None)])
def test_a_name_that_somebody_else_points_here_is_refused(app, host, path, body):
    answer = asyncio.run(ask(app, path, body, {"Host": host}))
    assert answer.status == 403
    assert "--allow-host" in answer.detail


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", "[", ""])
def test_pages_of_other_sites_cannot_send_photos(app, origin):
    answer = asyncio.run(ask(app, "/restore", PHOTO, {"Origin": origin}))
    assert answer.status == 403
    assert "access-control-allow-origin" not in answer.headers


def test_the_page_of_the_service_can(app):
    answer = asyncio.run(ask(app, "/restore", PHOTO, {"Origin": "http://localhost:8000"}))
    assert answer.status == 200


def test_other_sites_can_be_allowed():
    access = Access(None, frozenset(("https://photos.example",)))
    app = make_app(Service([HeldRestorer()], Limits()), access)
    headers = {"Origin": "https://photos.example", "Host": "api.photos.example"}
    answer = asyncio.run(ask(app, "/restore", PHOTO, headers))
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "https://photos.example"
    assert (
        asyncio.run(ask(app, "/restore", PHOTO, headers | {"Origin": "http://photos.example"})).status == 403
    )


@pytest.mark.parametrize("path", ["/", "/page.js", "/docs", "/health", "/none"])
def test_browsers_are_told_to_be_strict(app, path):
    headers = asyncio.run(ask(app, path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["content-security-policy"].startswith("default-src 'none'")


def test_unknown_paths_and_methods_are_json_too(app):
    assert asyncio.run(ask(app, "/none")).detail == "Not Found"
    wrong = asyncio.run(ask(app, "/restore"))
    assert (wrong.status, wrong.detail) == (405, "Method Not Allowed")
