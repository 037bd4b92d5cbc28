"""What a page of ours may do in a browser: run the script and the style that stand in it, and ask its own server.

So what comes from elsewhere and holds HTML stays text, even if the script forgot to treat it as such.
"""

from __future__ import annotations

import base64
import hashlib
import re


def page_headers(html: str) -> dict[str, str]:
    """The headers under which a page is sent."""
    return {
        "content-security-policy": _policy(html),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }


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
