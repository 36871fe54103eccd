"""`/`, `/openapi.json`, and the same for people at `/docs` and `/redoc`: pages that load nothing from anywhere else.

The page is made here, whole, from the document: no script, one style sheet inside it, allowed by its hash.
"""

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from functools import lru_cache
from html import escape
from typing import Any, Final

import msgspec

from gateway import __version__
from gateway.control import openapi
from gateway.control.access import PUBLIC
from gateway.control.http import encode
from gateway.control.openapi import Json
from gateway.control.route import Call, Nothing, Raw, Route

_STYLE: Final = """
:root{color-scheme:light dark;--line:#8884;--dim:#888;--tone:#8881}
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
code,pre{font:13px/1.45 ui-monospace,monospace}pre{background:var(--tone);padding:.7rem;overflow:auto}
h2{border-bottom:1px solid var(--line);margin-top:2.5rem}details{border-top:1px solid var(--line);padding:.4rem 0}
summary{cursor:pointer}summary code{font-weight:600}summary span{color:var(--dim);margin-left:.6rem}
.m{display:inline-block;min-width:4.2rem}table{border-collapse:collapse;margin:.5rem 0;width:100%}
td,th{border-bottom:1px solid var(--line);padding:.25rem .6rem .25rem 0;text-align:left;vertical-align:top}
nav a{margin-right:.9rem}.d{text-decoration:line-through}
"""
_HASH: Final = b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = (("content-security-policy", _POLICY), ("cache-control", "public, max-age=300"))


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What this is."""

    name: str
    version: str
    status: str
    #: Where things are.
    inference: str
    documentation: str
    openapi: str


def routes(declared: Sequence[Route]) -> tuple[Route, ...]:
    """The routes of the documentation of `declared`, and of themselves."""

    async def show_document(call: Call[Nothing, Nothing]) -> Raw:
        """This document."""
        return Raw(document(), media_type="application/json", headers=(("cache-control", "public, max-age=300"),))

    async def show_page(call: Call[Nothing, Nothing]) -> Raw:
        """The documentation, to read."""
        return Raw(page(), headers=_HEADERS)

    own = (
        Route(
            method="GET",
            path="/openapi.json",
            handler=show_document,
            access=PUBLIC,
            summary="The OpenAPI document",
            tag="documentation",
        ),
        Route(
            method="GET",
            path="/docs",
            aliases=("/redoc",),
            handler=show_page,
            access=PUBLIC,
            summary="The documentation",
            tag="documentation",
            media_type="text/html",
        ),
    )

    @lru_cache(maxsize=1)
    def document() -> bytes:
        return encode(openapi.build((*declared, *own)))

    @lru_cache(maxsize=1)
    def page() -> bytes:
        return render(openapi.build((*declared, *own))).encode()

    return own


async def show_about(call: Call[Nothing, Nothing]) -> About:
    """A description of the API."""
    return About(
        name="AI Gateway",
        version=__version__,
        status="ok",
        inference="/v1",
        documentation="/docs",
        openapi="/openapi.json",
    )


ROUTES: Final = (
    Route(method="GET", path="/", handler=show_about, access=PUBLIC, summary="What this is", tag="documentation"),
)


def render(document: Json) -> str:
    """The document as a page."""
    tags: dict[str, list[str]] = {each["name"]: [] for each in document["tags"]}
    schemas = document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            tags[operation["tags"][0]].append(_operation(path, method, operation, schemas))
    links = "".join(f'<a href="#{escape(tag)}">{escape(tag)}</a>' for tag in tags)
    parts = "".join(f'<h2 id="{escape(tag)}">{escape(tag)}</h2>{"".join(items)}' for tag, items in tags.items())
    info = document["info"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1><p>{escape(info['description'])} "
        '<a href="/openapi.json">openapi.json</a></p>'
        f"<nav>{links}</nav>{parts}</body></html>"
    )


def _operation(path: str, method: str, operation: Json, schemas: Json) -> str:
    old = ' class="d"' if operation.get("deprecated") else ""
    head = (
        f'<details id="{escape(operation["operationId"])}"><summary><code{old}><b class="m">{method.upper()}</b>'
        f"{escape(path)}</code><span>{escape(operation['summary'])}</span></summary>"
    )
    text = [head, *(f"<p>{_marked(part)}</p>" for part in operation["description"].split("\n\n"))]
    if operation["parameters"]:
        rows = [
            (each["name"], each["in"], each["schema"], each.get("description", ""))
            for each in operation["parameters"]
        ]
        text.append(_table(("parameter", "in", "type", ""), [(n, i, _kind(s), d) for n, i, s, d in rows]))
    if body := operation.get("requestBody"):
        text.append("<h4>Body</h4>" + _fields(body["content"]["application/json"]["schema"], schemas))
    for status, response in operation["responses"].items():
        content: tuple[str, Json] = next(iter(response.get("content", {}).items()), ("", {}))
        shown = _fields(content[1].get("schema", {}), schemas) if status < "300" else ""
        text.append(f"<h4>{status} {escape(content[0])}</h4><p>{_marked(response['description'])}</p>{shown}")
    return "".join(text) + "</details>"


def _fields(schema: Json, schemas: Json) -> str:
    """The fields of an object, one level deep."""
    name = schema.get("$ref", "").rpartition("/")[2]
    found = schemas.get(name, schema)
    rows = [
        (field, _kind(each), "required" if field in found.get("required", ()) else "", each.get("description", ""))
        for field, each in found.get("properties", {}).items()
    ]
    return _table(("field", "type", "", ""), rows) if rows else f"<p><code>{escape(_kind(schema))}</code></p>"


def _kind(schema: Json) -> str:
    """A type in a word or two."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " | ".join(_kind(each) for each in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(f'"{each}"' for each in schema["enum"])
    if schema.get("type") == "array":
        return f"[{_kind(schema.get('items', {}))}]"
    bounds = [f"{sign} {schema[key]}" for key, sign in (("minimum", ">="), ("maximum", "<=")) if key in schema]
    return " ".join([str(schema.get("type", "any")), ", ".join(bounds)]).strip()


def _table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:  # Any: texts; whatever is in it is escaped
    head = "".join(f"<th>{escape(each)}</th>" for each in headings)
    lines = "".join("<tr>" + "".join(f"<td>{_marked(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{lines}</table>"


def _marked(text: str) -> str:
    """Escaped, with `code` in its own font."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if number % 2 else piece for number, piece in enumerate(pieces))
