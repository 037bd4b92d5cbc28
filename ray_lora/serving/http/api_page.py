"""The page at `/docs`: every route and what it takes, written from the app's own schema. No script, nothing from
elsewhere, so that it is there without a network too.
"""

from __future__ import annotations

import json
from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

_HEADERS = {
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def add_api_page(app: FastAPI) -> None:
    """Serve the page; the app is made with `docs_url=None` and `redoc_url=None`, whose pages ask another site."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_page(app.openapi()), headers=_HEADERS)


def _page(schema: dict[str, Any]) -> str:
    routes = [
        _route(method.upper(), path, told)
        for path, methods in schema["paths"].items()
        for method, told in methods.items()
    ]
    shapes = [
        f"<h3 id='{escape(name)}'>{escape(name)}</h3>{_json(shape)}"
        for name, shape in sorted(schema.get("components", {}).get("schemas", {}).items())
    ]
    title = escape(schema["info"]["title"])
    head = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}: API</title>"
    intro = f"<h1>{title}</h1><p>The same for programs: <a href='/openapi.json'>/openapi.json</a></p>"
    return f"{head}<body>{intro}<h2>Routes</h2>{''.join(routes)}<h2>Shapes</h2>{''.join(shapes)}</body></html>"


def _route(method: str, path: str, told: dict[str, Any]) -> str:
    about = f"<p>{escape(told['description'])}</p>" if "description" in told else ""
    taken = told.get("requestBody", {}).get("content", {})
    bodies = "".join(f"<p>{escape(kind)}</p>{_json(body.get('schema', {}))}" for kind, body in taken.items())
    return f"<h3><code>{method} {escape(path)}</code></h3>{about}{bodies}"


def _json(shape: Any) -> str:
    return f"<pre>{escape(json.dumps(shape, indent=1))}</pre>"
