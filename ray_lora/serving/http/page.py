"""The page at `/`, where a person tries an adapter. One file, nothing from elsewhere, no data of its own.

What it shows it asks from the other routes, with the key that the person types. The policy lets its own script and
style run and nothing else, so a label that holds HTML stays text even if the script forgot to treat it as such.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse


def add_page(app: FastAPI) -> None:
    """Serve the page at `/`."""
    html = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    headers = {
        "content-security-policy": _policy(html),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)


def _policy(html: str) -> str:
    allowed = {
        tag: " ".join(map(_hash, re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.S))) for tag in ("script", "style")
    }
    return (
        f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; connect-src 'self'; "
        "img-src data:; media-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
