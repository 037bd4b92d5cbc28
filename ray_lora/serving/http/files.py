"""Files as request bodies, alone or as parts of a form: made `{"inputs": {"bytes": base64}}` of, so that all behind it
reads JSON. Plain ASGI.

Hugging Face's client sends a picture as it is where there are no parameters; `curl -F` sends a form. A file says that
it is one, so no task of texts ever reads its base64 as a text.
"""

from __future__ import annotations

import json

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_lora.errors import DataError
from ray_lora.serving.http import form
from ray_lora.serving.http.faults import fault, of

_FILES = ("image/", "audio/", "application/octet-stream")


class FileBodies:
    """Of `POST /v1/predict` and `POST /models/{ref}` alone, whose bodies of any other type than JSON, a form or a file
    are a 415; bodies whose size nothing limits must not come so far.

    Args:
        most: files that one form may hold.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not _answers(scope["path"]):
            await self.app(scope, receive, send)
            return
        kind = Headers(scope=scope).get("content-type", "")
        plain = kind.partition(";")[0].strip().lower()
        if plain == "application/json" or (plain.startswith("application/") and plain.endswith("+json")):
            await self.app(scope, receive, send)
            return
        if plain and plain != form.KIND and not plain.startswith(_FILES):
            said = f"content-type {plain[:80]!r} is not taken; send JSON as application/json, a form as {form.KIND}, "
            await fault(415, f"{said}or a file as what it is, such as image/png", "wrong_type")(scope, receive, send)
            return
        data, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            data += message.get("body", b"")
            more = message.get("more_body", False)
        body = bytes(data)
        try:
            if plain == form.KIND:
                body, kind = json.dumps(await form.read(body, kind, self.most)).encode(), "application/json"
            elif plain or not body.lstrip().startswith((b"{", b"[", b'"')):  # the client says no type of plain bytes
                body, kind = json.dumps({"inputs": form.as_input(body)}).encode(), "application/json"
        except DataError as error:
            await of(error)(scope, receive, send)
            return
        told = {b"content-length": str(len(body)).encode()} | ({b"content-type": kind.encode()} if kind else {})
        others = [(name, value) for name, value in scope["headers"] if name not in told]
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self.app({**scope, "headers": [*others, *told.items()]}, replay, send)


def _answers(path: str) -> bool:
    return path == "/v1/predict" or path.startswith("/models/")
