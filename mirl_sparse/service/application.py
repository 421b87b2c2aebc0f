"""Put the application together: its paths, what they take and answer, and how errors are told."""

from __future__ import annotations

from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from mirl_sparse.photos import FORMATS, Manner
from mirl_sparse.service.bodies import FIELD
from mirl_sparse.service.guard import Guard
from mirl_sparse.service.limits import Access
from mirl_sparse.service.metrics import Counting
from mirl_sparse.service.page import page_files
from mirl_sparse.service.reference import POLICY, reference_page
from mirl_sparse.service.refusals import Refusal
from mirl_sparse.service.service import MEDIA_TYPES, NOTE_HEADER, Service

_GONE = 499
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Problem(BaseModel):
    """Say why a request was refused."""

    detail: str = Field(description="One line: what was given, what was expected, what to do.")


class Options(BaseModel):
    """Say how a photo is restored."""

    model_config = ConfigDict(extra="forbid")

    strength: float = Field(
        1, ge=0, le=1, allow_inf_nan=False, description="0 leaves a photo as it is, 1 restores it fully."
    )
    format: Literal["png", "jpg", "jpeg", "webp", "tif", "tiff", "bmp"] | None = Field(
        None,
        description="Format of the result; by default the photo's own, or PNG if that is read only.",
    )
    metadata: bool = Field(
        True, description="Whether EXIF, XMP, IPTC, resolution and text are kept; the colour profile is."
    )


_ANSWERS = {
    HTTPStatus.BAD_REQUEST: "There is no photo, or it is damaged.",
    HTTPStatus.FORBIDDEN: "The request comes from a page of another site.",
    HTTPStatus.REQUEST_TIMEOUT: "The photo came too slowly.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The photo has too many bytes or pixels.",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "This is no photo of a known format.",
    HTTPStatus.UNPROCESSABLE_ENTITY: "A parameter is wrong, or the result does not fit the format.",
    HTTPStatus.TOO_MANY_REQUESTS: "There is too much to do; Retry-After says when to try again.",
    HTTPStatus.SERVICE_UNAVAILABLE: "The service stops, or has too little memory.",
    HTTPStatus.GATEWAY_TIMEOUT: "It took too long.",
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "schema": {
        "type": "object",
        "properties": {FIELD: _BINARY["schema"]},
        "required": [FIELD],
    }
}
_BODY = {
    "requestBody": {
        "required": True,
        "description": f"The bytes of the photo as they are, or a form with the file {FIELD!r}.",
        "content": {"image/*": _BINARY, "application/octet-stream": _BINARY, "multipart/form-data": _FORM},
    }
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": f"The restored photo. {NOTE_HEADER} may say more, such as that tiles were used.",
        "content": dict.fromkeys(MEDIA_TYPES, _BINARY),
        "headers": {
            "Content-Disposition": {"description": "Names the file.", "schema": {"type": "string"}},
            NOTE_HEADER: {"description": "What to know of the result.", "schema": {"type": "string"}},
        },
    },
    **{int(status): {"model": Problem, "description": text} for status, text in _ANSWERS.items()},
}


def make_app(service: Service, access: Access) -> ASGIApp:
    """Return the application.

    Args:
        service: What restores photos.
        access: Who may use it.
    """
    app: ASGIApp = Guard(_make_api(service), access)
    if access.origins:
        app = CORSMiddleware(
            app,
            allow_origins=sorted(access.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Content-Type"],
            expose_headers=["Content-Disposition", "Retry-After", NOTE_HEADER],
        )
    return Counting(app, service.metrics)


def _make_api(service: Service) -> FastAPI:
    api = FastAPI(
        title="mirl-sparse",
        version=version("mirl-sparse"),
        description="Restores photos: removes noise, rain and the marks of JPEG and WebP.",
        docs_url=None,  # they would load their scripts from elsewhere
        redoc_url=None,
    )
    _add_restore(api, service)
    _add_operation(api, service)
    _add_pages(api)
    _add_errors(api)
    return api


def _add_restore(api: FastAPI, service: Service) -> None:
    @api.post("/restore", response_class=Response, responses=_RESPONSES, openapi_extra=_BODY)
    async def restore(request: Request, options: Annotated[Options, Query()]) -> Response:
        """Restore a photo."""
        format = None if options.format is None else FORMATS[f".{options.format}"]
        return await service.restore(request, Manner(options.strength, options.metadata), format)


def _add_operation(api: FastAPI, service: Service) -> None:
    stopping: dict[int | str, dict[str, Any]] = {503: {"model": Problem, "description": "It stops."}}

    @api.get("/health")
    async def health() -> dict[str, str]:
        """Say that the service lives."""
        return {"status": "alive"}

    @api.get("/ready", responses=stopping)
    async def ready() -> dict[str, str]:
        """Say whether the service takes photos: from the start until it stops."""
        if not service.queue.is_open:
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the service stops")
        return {"status": "ready"}

    @api.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Return figures in the text format of Prometheus."""
        return Response(service.metrics.text(), headers={"Content-Type": _METRICS_TYPE})


def _add_pages(api: FastAPI) -> None:
    for path, answer in page_files().items():
        api.add_route(path, answer, methods=["GET"], include_in_schema=False)

    @api.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(reference_page(api.openapi()), headers={"Content-Security-Policy": POLICY})


def _add_errors(api: FastAPI) -> None:
    """Make each error a line of JSON."""

    @api.exception_handler(RequestValidationError)
    async def wrong_parameter(request: Request, error: RequestValidationError) -> Response:
        faults = (f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}" for fault in error.errors())
        return _problem(HTTPStatus.UNPROCESSABLE_ENTITY, "; ".join(faults))

    @api.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=_GONE)  # nobody reads it

    @api.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> Response:
        return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, "this is a bug of the service; its log says more")


def _problem(status: HTTPStatus, detail: str) -> Response:
    return JSONResponse({"detail": " ".join(detail.split())}, status)
