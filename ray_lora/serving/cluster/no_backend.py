"""What HAProxy answers while it knows no replica: 503 as an endpoint says it, where Ray has a 404 in plain text.

Ray writes that answer into HAProxy's configuration, in a rule of its own that no setting reaches. So Ray is given a
program in place of HAProxy, which writes that one line anew and then becomes HAProxy; a configuration that has no such
line stays as it is. It knows nothing of endpoints.
"""

from __future__ import annotations

import atexit
import os
import shlex
import shutil
import tempfile
from pathlib import Path

from ray_lora.serving.cluster.identity import AWAY, RETRY_AFTER_S

_RULE = "http-request return status"
_SED = (
    rf"s|{_RULE} 404 content-type text/plain lf-string .*|"
    rf"{_RULE} 503 content-type application/json hdr retry-after {RETRY_AFTER_S} string '{AWAY}'|"
)
_SCRIPT = """#!/bin/sh
previous=
for word do
    [ "$previous" = -f ] && sed -i -f {sed} "$word"
    previous=$word
done
exec {haproxy} "$@"
"""


def program(haproxy: str) -> str | None:
    """The path of a program that stands for this HAProxy while this process lives, for
    `RAY_SERVE_HAPROXY_BINARY_PATH`; None where no program may be written, or there is no sed.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-lora-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "away.sed").write_text(_SED + "\n")
    script = folder / "haproxy"
    script.write_text(_SCRIPT.format(sed=shlex.quote(str(folder / "away.sed")), haproxy=shlex.quote(haproxy)))
    script.chmod(0o700)
    return str(script) if shutil.which("sed") and os.access(script, os.X_OK) else None
