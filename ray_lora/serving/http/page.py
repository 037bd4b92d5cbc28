"""The page at `/`, where a person tries an adapter, and what it shows of an adapter's figures. One file, nothing from
elsewhere, no data of its own.

What it shows it asks from the other routes, with the key that the person types. The policy lets its own script and
style run and nothing else, so a label that holds HTML stays text even if the script forgot to treat it as such.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse

from ray_lora.html_policy import page_headers
from ray_lora.serving.endpoint import Endpoint
from ray_lora.serving.http.schemas import Explanation
from ray_lora.store.reports import report_of


def add_page(app: FastAPI, endpoint: Endpoint) -> None:
    """Serve the page at `/`, and what `ray-lora explain --keep` found of a version, whose key is as for its card."""

    @app.get("/v1/explanations/{ref:path}")
    async def explanation(ref: str, request: Request) -> Explanation:
        """`report` is null where nothing is kept of what the ref names; its nearest are those that the key is for."""
        key = endpoint.keys.of(request.headers)
        key.check_adapter(ref.partition("@")[0])
        entry = await endpoint.names.entry_of(ref)
        report = await asyncio.to_thread(report_of, endpoint.registry.store, entry)
        if report is not None:
            nearest = tuple(near for near in report.nearest if key.may_use(near.ref.partition("@")[0]))
            report = report.model_copy(update={"nearest": nearest})
        return Explanation(ref=entry.ref, sha256=entry.sha256, report=report)

    html = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    headers = page_headers(html)

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)
