"""What rows of one base may share: whether those of other lengths and of other adapters may stand in one pass.

    Sharing("joined")                              # rows end to end, of any adapters
    Sharing("equal", ("encoder.rel_proj",))        # rows of one length; adapters with a pair in that layer pass alone

`probe` finds it by comparing, once for each base and kind of head; it is kept in a file by the base's fingerprint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from ray_lora.atomic import write_atomic
from ray_lora.errors import CapacityError

Lengths = Literal["joined", "padded", "equal"]
_ORDER: tuple[Lengths, ...] = ("joined", "padded", "equal")


@dataclass(frozen=True)
class Sharing:
    """How rows may be computed together so that each gets the answer that it gets alone.

    Attributes:
        lengths: rows end to end without padding; padded to the longest; or only rows of one length in a pass.
        apart: layers whose inputs hold no rows where the others' do (relative positions, rows on another axis): an
            adapter with a pair in one of them shares no pass with others.
        reason: what was seen where less is shared than could be.
        refused: why no adapter can be used at all; empty where one can.
        uncalled: linear layers that no pass calls: their parents may read their weights.
    """

    lengths: Lengths = "padded"
    apart: tuple[str, ...] = ()
    reason: str = ""
    refused: str = ""
    uncalled: tuple[str, ...] = ()

    def passes_alone(self, targets: Collection[str]) -> bool:
        """Whether an adapter with pairs in these layers shares no pass with others."""
        return not set(self.apart).isdisjoint(targets)

    def check(self, targets: Mapping[int, Collection[str]], alike: bool, base: str) -> None:
        """CapacityError unless rows may share a pass.

        Args:
            targets: what each of the pass's slots has pairs in.
            alike: whether the rows are of one length.
            base: for the message.
        """
        lone = sorted(slot for slot, layers in targets.items() if self.passes_alone(layers))
        if lone and len(targets) > 1:
            raise CapacityError(
                f"adapters in slots {lone} share no pass with others on base {base!r} ({self.reason}); "
                "give each a pass of its own"
            )
        if self.lengths == "equal" and not alike:
            raise CapacityError(
                f"rows of different lengths share no pass on base {base!r} ({self.reason}); "
                "give rows of each length a pass of their own"
            )

    def with_head(self, head: Sharing) -> Sharing:
        """What holds for rows whose head shares no more than `head`."""
        lengths = max(self.lengths, head.lengths, key=_ORDER.index)
        reason = "; ".join(filter(None, (self.reason, head.reason)))
        return Sharing(lengths, self.apart, reason, self.refused or head.refused, self.uncalled)

    @property
    def words(self) -> str:
        """For people: how rows share a pass."""
        lengths = {"joined": "end to end", "padded": "padded", "equal": "of one length"}[self.lengths]
        return f"rows {lengths}" + (", some adapters one a pass" if self.apart else "")


# -------------------------------------------------------------------- kept by fingerprint


def recall(fingerprint: str, what: str) -> Sharing | None:
    """What was found of `what` on the base with this fingerprint, by these versions of the libraries."""
    try:
        told = json.loads(_file(fingerprint, what).read_text())
        apart, uncalled = (tuple(told[name]) for name in ("apart", "uncalled"))
        return Sharing(told["lengths"], apart, told["reason"], told["refused"], uncalled)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # never asked, or torn: it is asked again


def remember(fingerprint: str, what: str, sharing: Sharing) -> None:
    """Keep what was found; a disk that takes nothing costs the next process a moment, not an answer."""
    path = _file(fingerprint, what)
    with contextlib.suppress(OSError):
        write_atomic(path, json.dumps(asdict(sharing) | {"what": what}))


@cache
def _code() -> str:
    """A hash of the engine's code: what other code found is asked again."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _file(fingerprint: str, what: str) -> Path:
    versions = [version(name) for name in ("ray_lora", "torch", "transformers")]
    key = hashlib.sha256(json.dumps([_code(), fingerprint, what, versions]).encode()).hexdigest()
    kept = Path(os.environ.get("RAY_LORA_CACHE") or "~/.cache/ray_lora").expanduser()
    return kept / "sharing" / f"{key[:32]}.json"
