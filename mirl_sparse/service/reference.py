"""Show the OpenAPI document as a page, without scripts and without anything from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
_STYLE = """
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 0.5rem 0 1rem }
th, td { border-bottom: 1px solid #8884; padding: 0.25rem 1rem 0.25rem 0; text-align: left }
:root { color-scheme: light dark }
"""


def reference_page(document: dict[str, Any]) -> str:
    """Return a page that lists all paths of an OpenAPI document, their parameters and answers.

    Args:
        document: What ``/openapi.json`` gives.
    """
    info = document["info"]
    title = f"{info['title']} {info['version']}"
    parts = (
        part
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        for part in _operation(f"{method.upper()} {path}", operation)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{escape(title)}</h1>\n<p>{escape(info.get('description', ''))}</p>\n"
        '<p>For programs: <a href="openapi.json">openapi.json</a>; for people: <a href="./">page</a>.</p>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _operation(heading: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"<h2><code>{escape(heading)}</code></h2>"
    yield f"<p>{escape(operation.get('description') or operation.get('summary', ''))}</p>"
    if parameters := operation.get("parameters"):
        described = ((p["name"], _values(p["schema"]), p.get("description", "")) for p in parameters)
        yield from _table(("Parameter", "Values", ""), described)
    if body := operation.get("requestBody"):
        kinds = ((kind, body.get("description", "")) for kind in body["content"])
        yield from _table(("Body", ""), kinds)
    answers = (
        (status, ", ".join(answer.get("content", {})), answer["description"])
        for status, answer in operation["responses"].items()
    )
    yield from _table(("Status", "Content", ""), answers)


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield "<table><tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
    yield "</table>"


def _values(schema: dict[str, Any]) -> str:
    """Return in one line which values a schema allows."""
    if choices := schema.get("anyOf"):
        return " or ".join(_values(choice) for choice in choices if choice.get("type") != "null")
    text = ", ".join(map(str, schema["enum"])) if "enum" in schema else schema.get("type", "")
    if "minimum" in schema and "maximum" in schema:
        text += f" from {schema['minimum']:g} to {schema['maximum']:g}"
    default = schema.get("default")
    return text if default is None else f"{text} (default {str(default).lower()})"
