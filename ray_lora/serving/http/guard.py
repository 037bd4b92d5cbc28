"""What a request's head alone tells against it, answered before its body is read. Plain ASGI; knows no routes.

Host: evil.example          403 where there are no keys: a page elsewhere whose name was made to mean this machine
Origin: https://evil.org    403 of all that is not a GET: a page elsewhere, in the browser of somebody here
no key, or an unknown one   401 of all that has a body
Content-Encoding: gzip      415: only the plain bytes have the size that the limits are for
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ray_lora.errors import RayLoraError
from ray_lora.serving.args import AppArgs
from ray_lora.serving.http.faults import fault, of
from ray_lora.serving.http.keys import Keys

_SHOWN = 80  # letters of a header that an answer repeats
_READING = ("GET", "HEAD", "OPTIONS")


class Guard:
    """See above.

    Args:
        args: `hosts` are names that `Host` and `Origin` may have beside this machine's own. `Host` is looked at while
            the endpoint is for this machine alone and has no keys.
    """

    def __init__(self, app: ASGIApp, args: AppArgs, keys: Keys) -> None:
        self.app, self.keys = app, keys
        self.names = {"localhost", args.host.lower(), *(name.lower() for name in args.hosts)}
        self.here = is_loopback(args.host) and not args.insecure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = self._host(headers) if self.here and not self.keys else None
        if refused is None and scope["method"] not in _READING:
            refused = self._site(headers) or self._key(headers) or _encoding(headers)
        await (refused or self.app)(scope, receive, send)

    def _host(self, headers: Headers) -> ASGIApp | None:
        """Who sends no Host is no browser, and an address cannot be made to mean another one."""
        host = headers.get("host")
        if host is None or _known(host, self.names, addresses=True):
            return None
        said = f"Host {host[:_SHOWN]!r} is not this endpoint's; ask for localhost, or start it with hosts=NAME or keys"
        return fault(403, said, "forbidden")

    def _site(self, headers: Headers) -> ASGIApp | None:
        origin, host = headers.get("origin"), headers.get("host", "")
        if origin is None:
            elsewhere = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        else:
            place = urlsplit(origin).netloc.lower() if _is_url(origin) else ""
            elsewhere = place != host.lower() and not _known(place, self.names - {"localhost"}, addresses=False)
        if not elsewhere:
            return None
        said = "this was sent by a page of another site, which may not; start the endpoint with hosts=NAME to allow it"
        return fault(403, said, "forbidden")

    def _key(self, headers: Headers) -> ASGIApp | None:
        try:
            self.keys.of(headers)
        except RayLoraError as error:
            return of(error)
        return None


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach what listens there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _encoding(headers: Headers) -> ASGIApp | None:
    coding = headers.get("content-encoding", "").strip().lower()
    if coding in ("", "identity"):
        return None
    said = f"content-encoding {coding[:_SHOWN]!r} is not taken; send the body as it is"
    return fault(415, said, "wrong_encoding", headers={"accept-encoding": "identity"})


def _known(place: str, names: Collection[str], addresses: bool) -> bool:
    """Whether `name` or `name:port` is one of the names, or any address where these are allowed."""
    try:
        name = (urlsplit(f"//{place}").hostname or "").rstrip(".")
    except ValueError:
        return False
    if name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return addresses


def _is_url(text: str) -> bool:
    try:
        return bool(urlsplit(text).netloc)
    except ValueError:
        return False
