"""The page, the reference, the OpenAPI document and the figures."""

import asyncio
import json
import re

import pytest
from asgi import ask
from prometheus_client.parser import text_string_to_metric_families
from services import LOOPBACK, HeldRestorer, encoded

from mirl_sparse.service import Limits, Service, make_app
from mirl_sparse.service.page import served_index
from mirl_sparse.web import PAGE


def get(app, path):
    answer = asyncio.run(ask(app, path))
    assert answer.status == 200
    return answer


def test_the_page_may_connect_to_the_service_alone_and_has_it_as_its_engine(app):
    answer = get(app, "/")
    text = answer.body.decode()
    assert 'data-engine="service"' in text
    assert "connect-src 'self';" in text
    assert "connect-src 'none'" not in text
    assert "connect-src 'self';" in answer.headers["content-security-policy"]
    assert answer.headers["content-type"] == "text/html; charset=utf-8"


def test_the_offline_page_still_forbids_all_connections():
    text = (PAGE / "index.html").read_text("utf-8")
    assert "connect-src 'none';" in text
    assert 'data-engine="browser"' in text


def test_all_that_the_page_loads_is_served_and_nothing_of_the_offline_engine(app):
    waiting, seen = ["page.js", "page.css"], set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        text = get(app, f"/{name}").body.decode()
        names = re.findall(r'(?:from |import\()"\./([\w.]+)"', text)
        waiting += [other for other in names if other not in seen and other != "browser.js"]
    assert {"service.js", "queue.js", "viewer.js"} <= seen
    assert asyncio.run(ask(app, "/data.js")).status == 404
    assert asyncio.run(ask(app, "/browser.js")).status == 404


@pytest.mark.parametrize("path", ["/../limits.py", "/%2e%2e/x", "/index.html", "//etc/passwd"])
def test_no_other_files_are_served(app, path):
    assert asyncio.run(ask(app, path)).status == 404


def test_a_page_without_a_place_for_the_engine_is_a_loud_error():
    with pytest.raises(ValueError, match="0 places"):
        served_index("<html>")


def test_the_document_is_valid_openapi_and_names_each_status(app):
    validate = pytest.importorskip("openapi_spec_validator").validate
    document = json.loads(get(app, "/openapi.json").body)
    validate(document)
    post = document["paths"]["/restore"]["post"]
    expected = {"200", "400", "403", "408", "413", "415", "422", "429", "503", "504"}
    assert set(post["responses"]) == expected
    assert {p["name"] for p in post["parameters"]} == {"strength", "format", "metadata"}
    assert "multipart/form-data" in post["requestBody"]["content"]


def test_the_reference_shows_all_of_it_and_loads_nothing(app):
    answer = get(app, "/docs")
    text = answer.body.decode()
    document = json.loads(get(app, "/openapi.json").body)
    for path in document["paths"]:
        assert path in text
    for word in ("number from 0 to 1 (default 1)", "png, jpg, jpeg", "boolean (default true)", "429"):
        assert word in text

    assert not re.search(r"<(script|link|img|iframe)|src=|url\(", text)
    assert "script-src" not in answer.headers["content-security-policy"]  # default-src 'none' it is


def test_the_figures_are_those_of_prometheus_and_true():
    app, data = make_app(Service([HeldRestorer()], Limits()), LOOPBACK), encoded(24, 32)
    results = [asyncio.run(ask(app, "/restore", data)) for _ in range(2)]
    asyncio.run(ask(app, "/restore", b"no photo"))
    asyncio.run(ask(app, "/restore?strength=3", data))
    asyncio.run(ask(app, "/none"))
    answer = get(app, "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, sample.labels.get("status", "")): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }
    assert samples["mirl_sparse_requests_total", "200"] == 2
    assert samples["mirl_sparse_requests_total", "415"] == 1
    assert samples["mirl_sparse_requests_total", "422"] == 1
    assert samples["mirl_sparse_pixels_total", ""] == 2 * 24 * 32
    assert samples["mirl_sparse_received_bytes_total", ""] == 2 * len(data)
    assert samples["mirl_sparse_sent_bytes_total", ""] == 2 * len(results[0].body)
    assert samples["mirl_sparse_request_seconds_count", ""] == 2
    assert samples["mirl_sparse_waiting_photos", ""] == samples["mirl_sparse_held_bytes", ""] == 0
    assert samples["process_resident_memory_bytes", ""] > 1e6
