"""A form (multipart/form-data) as the JSON that /v1/predict and /models/{ref} read.

    file         one picture or sound; its answer is what one input gets
    files        as often as there are pictures or sounds; their answers are a list
    model        an adapter's name, or a JSON list of names; may be said more than once
    parameters   a JSON object
    user         as in JSON

Knows no routes: what a route does not take, it refuses as it does in JSON.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from ray_lora.errors import DataError
from ray_lora.recipe import Json
from ray_lora.serving.http.json_bodies import read as read_json
from ray_lora.serving.inputs import TooManyInputsError

KIND = "multipart/form-data"
_FILES = ("file", "files")
_FIELDS = ("model", "parameters", "user")
_MOST_FIELDS = 64


class Sent(NamedTuple):
    """A file in a form, with the name that the client gave it."""

    name: str
    data: bytes


async def read(data: bytes, kind: str, most: int) -> dict[str, Json]:
    """The form's fields as one JSON object.

    Args:
        kind: its content-type, which names what parts it.
        most: files that it may hold.

    Raises:
        DataError: it is cut short, or a part is none of those above or no JSON where JSON is due.
        TooManyInputsError: it holds too many files.
    """
    return _told(await parts(data, kind, most))


async def parts(data: bytes, kind: str, most: int) -> list[tuple[str, Sent | str]]:
    """A form's parts, by name, in their order: files and texts.

    Args:
        kind, most: as of `read`.

    Raises:
        DataError, TooManyInputsError: as `read`, but for what parts hold.
    """
    boundary = parse_options_header(kind)[1].get(b"boundary", b"")
    if not boundary:
        raise DataError(f"the content-type {KIND} names no boundary; let the client that makes the form set it")
    if not (b"\r\n" + data.rstrip()).endswith(b"\r\n--" + boundary + b"--"):  # else its last part is lost unseen
        raise DataError("the form ends before its last boundary; send it whole")
    said = f"more than {most} files in one form; at most {most} are taken"
    headers = Headers({"content-type": kind})
    parser = MultiPartParser(headers, _once(data), max_files=most + 1, max_fields=_MOST_FIELDS, max_part_size=len(data))
    parser.spool_max_size = len(data) + 1  # in memory, where it is already
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise TooManyInputsError(said) from None
        raise DataError(f"the form cannot be read: {error.message}") from None
    try:
        if sum(name in _FILES for name, _ in form.multi_items()) > most:
            raise TooManyInputsError(said)
        return [
            (name, Sent(value.filename or "", value.file.read()) if isinstance(value, UploadFile) else value)
            for name, value in form.multi_items()
        ]
    finally:
        await form.close()


def as_input(data: bytes) -> Json:
    """One file as an input in JSON."""
    return {"bytes": base64.b64encode(data).decode()}


def _told(found: Sequence[tuple[str, Sent | str]]) -> dict[str, Json]:
    files: list[tuple[str, Json]] = []
    models: list[Json] = []
    listed = False
    told: dict[str, Json] = {}
    for name, value in found:
        if name in _FILES:
            if isinstance(value, str):
                raise DataError(
                    f"the form's part {name!r} has no filename, so it is no file; `curl -F file=@PATH` gives one"
                )
            files.append((name, as_input(value.data)))
        elif name not in _FIELDS or not isinstance(value, str):
            raise DataError(
                f"the form's part {name[:80]!r} is not taken; it may hold the files {', '.join(_FILES)} and the fields "
                f"{', '.join(_FIELDS)}"
            )
        elif name == "model" and value.startswith("["):
            models, listed = [*models, *_json(name, value)], True
        elif name == "model":
            models.append(value)
        elif name in told:
            raise DataError(f"the form says {name} twice; say it once")
        else:
            told[name] = _json(name, value) if name == "parameters" else value
    names = [name for name, _ in files]
    if not files:
        raise DataError("the form holds no file; add a part named file, as `curl -F file=@PATH` does")
    if "file" in names and len(names) > 1:
        raise DataError("the form holds several files; name each such part files")
    if models:
        told["model"] = models if listed or len(models) > 1 else models[0]
    return told | {"inputs": files[0][1] if names == ["file"] else [value for _, value in files]}


def _json(name: str, value: str) -> Json:
    try:
        return read_json(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the form's part {name!r} is no JSON: {str(error)[:120]}") from None


async def _once(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data
