"""What lay in a store when, and so what an endpoint may have answered: the oracle of test_never_wrong.py.

Whoever changes the store says so before and after each step; any thread may ask what a request that was on its way from
`sent` to `received` may have got. All times are of `time.monotonic`. Knows no endpoint, and files only as bytes.

    with ledger.changing("tweets", 3, {CARD: b"..."}):
        ...                                                     # write it
    ledger.complaint("tweets@3", sent, received, answer)        # None: it may be so
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load

CONFIG, WEIGHTS, CARD = PARTS = ("adapter_config.json", "adapter_model.safetensors", "ray_lora.json")
# A folder without a card is taken for whole when it was left alone for about two seconds: never before, always after. A
# version that was found half, or changing, is not looked at for every request: so long it may still be refused as such.
_EARLIEST_S, _LATEST_S = 1.5, 4.0
_NEAR = 1e-4  # between a score and PEFT's
_CODES = {400: "invalid_adapter", 404: "model_not_found", 503: "unavailable"}


@dataclass(frozen=True)
class Content:
    """What a version may hold: its files, and what PEFT makes of them."""

    files: Mapping[str, bytes]
    sha256: str
    labels: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]  # by text, then by label
    finite: bool = (
        True  # whether these are numbers; where they are not, its hash is right and it is broken all the same
    )

    @property
    def kind(self) -> str:
        return "carded" if CARD in self.files else "plain"


@dataclass(frozen=True)
class Held:
    """One version's files, when each was written last (the whole, where nothing is said), and when anything changed."""

    files: Mapping[str, bytes]
    changed: float
    times: Mapping[str, float] = field(default_factory=dict)
    at_once: bool = False  # the whole folder came by one rename, so it was never half

    @property
    def readable(self) -> bool:
        """Whether plain PEFT would read it, whatever it is: files of two contents, should they be left so for long."""
        if set(self.files) != {CONFIG, WEIGHTS}:
            return False
        try:
            json.loads(self.files[CONFIG])
            return all(bool(tensor.isfinite().all()) for tensor in load(self.files[WEIGHTS]).values())
        except (ValueError, SafetensorError):
            return False


@dataclass
class Moment:
    """A name as it may be found from `begin` on, until the next moment is settled."""

    versions: Mapping[int, Held]
    aliases: Mapping[str, int]
    begin: float
    settled: float = math.inf


@dataclass
class Away:
    """The store going, gone, coming and back."""

    going: float
    gone: float = math.inf
    coming: float = math.inf
    back: float = math.inf


class Outcome(NamedTuple):
    """What a request may get: a status, and for 200 a version and the hash of what it holds, or else its files."""

    status: int
    version: int = 0
    sha256: str = ""
    files: tuple[bytes | None, ...] = ()  # of two contents: what they make together is found out later


@dataclass(frozen=True)
class Reply:
    """What a client got: `asked` are the numbers of the texts that it sent."""

    asked: tuple[int, ...]
    status: int
    headers: Mapping[str, str]
    body: Any


class Mixed(NamedTuple):
    """An answer by files of two contents that were left so for long: of one of these, each in the order of PARTS."""

    reply: Reply
    files: list[tuple[bytes | None, ...]]


@dataclass
class Ledger:
    """One thread writes, any thread asks."""

    contents: Mapping[tuple[bytes | None, ...], Content]
    moments: dict[str, list[Moment]] = field(default_factory=dict)
    aways: list[Away] = field(default_factory=list)
    mixed: list[Mixed] = field(default_factory=list)

    def now(self, name: str) -> Moment:
        """How a name was left."""
        return self.moments[name][-1]

    @contextmanager
    def becoming(self, name: str, versions: Mapping[int, Held], aliases: Mapping[str, int]) -> Iterator[None]:
        """While a name is changed to this."""
        moment = Moment(dict(versions), dict(aliases), time.monotonic())
        self.moments.setdefault(name, []).append(moment)
        yield
        moment.settled = time.monotonic()

    @contextmanager
    def changing(self, name: str, version: int, files: Mapping[str, bytes | None] | None) -> Iterator[None]:
        """While files of one version are changed to these (None: taken away), or the whole version is."""
        now = self.now(name)
        versions = dict(now.versions)
        before = versions.pop(version, None)
        if files is not None:
            after = {**(before.files if before else {}), **files}
            kept = {part: data for part, data in after.items() if data is not None}
            times = {part: self._time(before, part) for part in kept}
            versions[version] = Held(kept, time.monotonic(), times | dict.fromkeys(files, time.monotonic()))
        with self.becoming(name, versions, now.aliases):
            yield
        if files is not None:  # its time is that of the end of the writing
            written = dict.fromkeys(files, time.monotonic())
            held = replace(versions[version], changed=time.monotonic(), times={**versions[version].times, **written})
            self.now(name).versions = {**versions, version: held}

    def complaint(self, ref: str, sent: float, received: float, reply: Reply) -> str | None:
        """Why this cannot be what the request should have got; None: it can."""
        allowed = self.allowed(ref, sent, received)
        if reply.status != 200:
            return self._refused(reply, allowed)
        adapter, sha256 = reply.headers.get("x-adapter", ""), reply.headers.get("x-adapter-sha256", "")
        name, _, version = adapter.partition("@")
        got = Outcome(200, int(version) if version.isdigit() else 0, sha256)
        if name != ref.partition("@")[0] or reply.body["version"] != got.version:
            return f"it is of {adapter!r}, and version {reply.body['version']}"
        if got in allowed:
            return complaint_of(reply, next(one for one in self.contents.values() if one.sha256 == sha256))
        mixed = [one.files for one in allowed if one.files and one.version == got.version]
        if mixed:
            self.mixed.append(Mixed(reply, mixed))
        return None if mixed else f"{_shown([got])}; allowed: {_shown(allowed)}"

    def allowed(self, ref: str, sent: float, received: float) -> set[Outcome]:
        """All that a request on its way between these two times may have got."""
        name = ref.partition("@")[0]
        found, moments = set(), list(self.moments.get(name, []))  # it grows meanwhile
        for away in self.aways:
            if away.going <= received and sent <= away.back:
                found |= {Outcome(503), *self._known(ref, moments, received)}
                if away.gone <= sent and received <= away.coming:
                    return found
        last = len(moments) - 1
        for index in range(last, -1, -1):
            if index < last and moments[index + 1].settled < sent:
                break
            if moments[index].begin <= received:
                found |= self._meant(ref, moments[index], sent, received)
        return found if moments else found | {Outcome(404)}

    def _known(self, ref: str, moments: list[Moment], received: float) -> set[Outcome]:
        """All that a ref has ever meant: a replica goes on with what it saw last, while the store is away.

        It may have looked at any time of a moment: while the newest version was settling, the one before was meant.
        """
        found = set()
        for moment, after in zip_longest(moments, moments[1:]):
            if moment.begin <= received:
                until = min(received, after.settled) if after else received
                found |= {one for one in self._meant(ref, moment, moment.begin, until) if one.status in (200, 400)}
        return found

    def _meant(self, ref: str, moment: Moment, sent: float, received: float) -> set[Outcome]:
        selector = ref.partition("@")[2]
        if not selector and "champion" not in moment.aliases:
            return self._newest(moment, sent, received)
        version = int(selector) if selector.isdigit() else moment.aliases.get(selector or "champion", 0)
        if version not in moment.versions:
            return {Outcome(404)}
        return self._one(version, moment.versions[version], sent, received)

    def _newest(self, moment: Moment, sent: float, received: float) -> set[Outcome]:
        found, late = set[Outcome](), set[Outcome]()
        for version in sorted(moment.versions, reverse=True):
            held = moment.versions[version]
            one = self._one(version, held, sent, received)
            if all(outcome.status == 200 for outcome in one):
                return {outcome for outcome in found if outcome.status == 200} | one | late
            found |= one
            content = self._content(held)
            if content is not None and not content.finite:
                late = {Outcome(400)}  # whoever asks first finds out
        return found or {Outcome(404)}

    def _one(self, version: int, held: Held, sent: float, received: float) -> set[Outcome]:
        """What a request for this version may get, if the version was this at the time."""
        youngest = sent - held.changed
        oldest = received - max(self._time(held, part) for part in held.files) if held.files else 0.0
        refused = {Outcome(400)} | ({Outcome(503)} if youngest < _LATEST_S else set())
        if CONFIG not in held.files:
            return refused | {Outcome(404)}  # it is not there yet
        content = self._content(held)
        if content is None:
            mixed = Outcome(200, version, files=_parts(held))
            return refused | ({mixed} if oldest > _EARLIEST_S and held.readable else set())
        if not content.finite:
            return refused
        whole = {Outcome(200, version, content.sha256)}
        if CARD not in held.files and oldest < _EARLIEST_S and not held.at_once:
            return {Outcome(503)}
        return whole | ({Outcome(503)} if youngest < _LATEST_S else set())

    @staticmethod
    def _time(held: Held | None, part: str) -> float:
        return 0.0 if held is None else held.times.get(part, held.changed)

    def _content(self, held: Held) -> Content | None:
        return self.contents.get(_parts(held))

    def _refused(self, reply: Reply, allowed: Iterable[Outcome]) -> str | None:
        if Outcome(reply.status) not in allowed:
            return f"{reply.status} {reply.body}; allowed: {_shown(allowed)}"
        error = reply.body["error"]
        if set(error) != {"message", "type", "param", "code"} or error["code"] != _CODES[reply.status]:
            return f"{reply.status} of another shape: {reply.body}"
        return "503 without Retry-After" if reply.status == 503 and "retry-after" not in reply.headers else None


def complaint_of(reply: Reply, content: Content) -> str | None:
    """Why an answer is not what PEFT makes of a content; None: it is."""
    if len(reply.body["predictions"]) != len(reply.asked):
        return f"{len(reply.body['predictions'])} answers to {len(reply.asked)} texts"
    for text, ranked in zip(reply.asked, reply.body["predictions"], strict=True):
        scores = {answer["label"]: answer["score"] for answer in ranked}
        if tuple(sorted(scores)) != tuple(sorted(content.labels)):
            return f"labels {sorted(scores)}, not {sorted(content.labels)}"
        for label, expected in zip(content.labels, content.scores[text], strict=True):
            if not abs(scores[label] - expected) <= _NEAR:
                return f"{label} of text {text} is {scores[label]}, PEFT says {expected}"
    return None


def _parts(held: Held) -> tuple[bytes | None, ...]:
    return tuple(held.files.get(part) for part in PARTS)


def _shown(outcomes: Iterable[Outcome]) -> str:
    told = (f"version {o.version} ({o.sha256[:8] or 'any'})" if o.status == 200 else str(o.status) for o in outcomes)
    return ", ".join(sorted(told)) or "nothing"
