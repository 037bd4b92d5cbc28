"""Answers written token by token, of rows of any adapters that join and leave between steps.

    decoder = Decoder(engine, head)
    [row] = decoder.join(slot, [5, 6, 7], Sampling(max_tokens=20), ends={2})
    while decoder.rows:
        for row, written in decoder.step().items(): print(row, written.token, written.reason)

A step is one pass: a token of every row that is being written, and a piece of the prompts that wait, so that a long
prompt does not stop the others. A row that has ended has left. It knows tokens; it knows no texts and no requests.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from ray_lora.bases.plain import HeadSpec
from ray_lora.engine import AdapterEngine
from ray_lora.engine.decoding import Decoding, Row
from ray_lora.errors import CapacityError
from ray_lora.inference.finite import NotFiniteError
from ray_lora.inference.prefixes import Prefixes
from ray_lora.inference.sampling import Choice, Chooser, Sampling

Reason = Literal["stop", "length"]  # OpenAI's words
PIECE = 256  # tokens of prompts in one step


@dataclass(frozen=True)
class Written:
    """A row's next token, and why it was the last where it was."""

    choice: Choice
    reason: Reason | None

    @property
    def token(self) -> int:
        return self.choice.token


@dataclass(eq=False)
class _Answer:
    """One answer in the making; `kept` is None until its prompt is begun, `left` what of the prompt is not read yet."""

    number: int
    slot: int
    ids: list[int]
    prompt: int
    most: int
    ends: frozenset[int]
    chooser: Chooser
    left: list[int]
    kept: Row | None = None
    owner: str | None = None  # for whose prompts it is to be kept, until it is
    others: list[_Answer] = field(default_factory=list)  # answers to the same prompt, which begin where it ends


class Decoder:
    """The answers that one engine writes.

    Args:
        head: the plain class that says what follows.
        capacity: tokens of all rows together, prompts and room for answers.
        longest: tokens of the longest row, where the base has so many positions.
        piece: tokens of prompts in one step.
        prefix_bytes: of what is kept of prompts, for others that begin alike.

    Attributes:
        prefixes: what is kept.
        prompt_tokens: that were read, since the start.
        lost: rows that the last step found no numbers for, each with its error; they have left.
    """

    def __init__(
        self,
        engine: AdapterEngine,
        head: HeadSpec,
        capacity: int = 65_536,
        longest: int | None = None,
        piece: int = PIECE,
        prefix_bytes: int = 0,
    ) -> None:
        self._decoding = Decoding(engine, head)
        self.capacity, self._longest, self._piece = capacity, longest, piece
        self.prefixes = Prefixes(prefix_bytes)
        self.lost: dict[int, NotFiniteError] = {}
        self.prompt_tokens = 0
        self._answers: dict[int, _Answer] = {}
        self._numbers = itertools.count(1)

    @property
    def rows(self) -> list[int]:
        """Rows that have not ended, in the order in which they joined."""
        return sorted(self._answers)

    @property
    def kept(self) -> int:
        """Rows of which something is kept."""
        return self._decoding.rows

    @property
    def free(self) -> int:
        """Tokens of `capacity` that no row has taken."""
        return self.capacity - sum(answer.prompt + answer.most for answer in self._answers.values())

    def forget(self, owners: Collection[str]) -> int:
        """Keep no prompts of some owners; how many were kept. Answers in the making go on, and keep nothing."""
        for answer in self._answers.values():
            if answer.owner in owners:
                answer.owner = None
        return self.prefixes.forget(owners)

    def needs(self, prompt: int, sampling: Sampling) -> int:
        """Tokens that the answers to a prompt of so many tokens take.

        Raises:
            CapacityError: the prompt is empty or leaves no room, or all of it together is too small.
        """
        asked = sampling.n * (prompt + self._room(prompt, sampling))
        if asked > self.capacity:
            raise CapacityError(
                f"{sampling.n} answers of {asked} tokens with their prompts pass {self.capacity}, which is all; "
                "lower n or max_tokens"
            )
        return asked

    def join(
        self,
        slot: int,
        ids: Sequence[int],
        sampling: Sampling,
        ends: Collection[int] = (),
        owner: str | None = None,
    ) -> list[int]:
        """Begin answers to a prompt by a slot's adapter; one row for each of `sampling.n`, which share the prompt.

        Args:
            ids: the prompt's tokens, at least one. ends: tokens that end an answer.
            owner: the content hash of what the slot holds; with it the prompt may begin where another of the same
                content was kept, and is kept itself.

        Raises:
            CapacityError: the prompt leaves no room, or there is none for more rows until others have left.
        """
        room, asked = self._room(len(ids), sampling), self.needs(len(ids), sampling)
        if asked > self.free:
            held = self.capacity - self.free
            raise CapacityError(f"rows of {held} tokens are in the making and {asked} more pass {self.capacity}; wait")
        answers = [
            _Answer(
                next(self._numbers), slot, list(ids), len(ids), room, frozenset(ends), Chooser(sampling, at), list(ids)
            )
            for at in range(sampling.n)
        ]
        first = answers[0]
        first.others = answers[1:]
        first.kept = self._decoding.enter(slot, len(ids) + room)
        first.owner = owner if self.prefixes.most else None
        found = None if first.owner is None else self.prefixes.longest(first.owner, ids)
        if found is not None:
            self._decoding.fill(first.kept, found[1], found[0])
            first.left = list(ids[found[0] :])
        self._answers |= {answer.number: answer for answer in answers}
        return [answer.number for answer in answers]

    def leave(self, row: int) -> None:
        """Forget a row, whether it has ended or not; one that has left already is left alone."""
        answer = self._answers.pop(row, None)
        if answer is None:
            return
        heirs = [other for other in answer.others if other.number in self._answers]
        if heirs:  # whoever waits for this prompt goes on with it
            heir, *rest = heirs
            heir.kept, heir.left, heir.others, answer.kept = answer.kept, answer.left, rest, None
            heir.owner = answer.owner
        if answer.kept is not None:
            self._decoding.leave(answer.kept)

    def _room(self, prompt: int, sampling: Sampling) -> int:
        """Tokens that an answer may have."""
        if not prompt:
            raise CapacityError("a prompt has at least one token")
        room = sampling.max_tokens if self._longest is None else min(sampling.max_tokens, self._longest - prompt)
        if room < 1:
            raise CapacityError(f"a prompt of {prompt} tokens leaves no room; a row has at most {self._longest}")
        return room

    def step(self, only: Collection[int] | None = None) -> dict[int, Written]:
        """One pass; the tokens that it wrote, by row. Rows whose prompts are not read to their end have none.

        What raises leaves every row as it was.

        Args:
            only: the rows that take part; None for all.
        """
        self.lost = {}
        part = self._answers if only is None else {row: self._answers[row] for row in only if row in self._answers}
        writing = [answer for answer in part.values() if answer.kept is not None and not answer.left]
        work = [(answer, answer.ids[-1:]) for answer in writing]
        room = self._piece
        for answer in self._waiting(part.values(), Counter(answer.slot for answer in writing)):
            if room > 0:
                work.append((answer, answer.left[:room]))
                room -= len(work[-1][1])
        if not work:
            return {}
        logits = self._decoding.advance([(_kept(answer), tokens) for answer, tokens in work])
        ready: list[tuple[_Answer, int]] = []
        for at, (answer, tokens) in enumerate(work):
            self.prompt_tokens += len(tokens) if answer.left else 0
            answer.left = answer.left[len(tokens) :]
            if answer.left:
                continue
            ready.append((answer, at))
            for other in answer.others:
                if other.number in self._answers:
                    other.kept, other.left = self._decoding.fork(_kept(answer)), []
                    ready.append((other, at))
            answer.others = []
        highest, likeliest = (found.tolist() for found in logits.max(-1))
        written = {}
        for answer, at in ready:
            if math.isfinite(highest[at]):  # what is no number is the highest
                self._keep(answer)
                token = likeliest[at] if answer.chooser.greedy else None
                written[answer.number] = self._write(answer, logits[at], token)
            else:
                self.lost[answer.number] = NotFiniteError("what follows a prompt is not a finite number")
                self.leave(answer.number)
        return written

    def _keep(self, answer: _Answer) -> None:
        """Keep a prompt that has just been read to its end."""
        if answer.owner is not None and len(answer.ids) == answer.prompt:
            if not self.prefixes.holds(answer.owner, answer.ids):
                self.prefixes.keep(answer.owner, answer.ids, self._decoding.copy(_kept(answer)))
            answer.owner = None

    def _waiting(self, part: Collection[_Answer], running: Counter[int]) -> list[_Answer]:
        """Rows whose prompts wait: those first whose adapters have the fewest rows before them, then by age."""
        waiting = sorted(
            (answer for answer in part if answer.kept is not None and answer.left),
            key=lambda answer: answer.number,
        )
        before = Counter(running)
        order = []
        for answer in waiting:
            order.append((before[answer.slot], answer.number, answer))
            before[answer.slot] += 1
        return [answer for *_, answer in sorted(order, key=lambda one: one[:2])]

    def _write(self, answer: _Answer, logits: Tensor, likeliest: int | None) -> Written:
        choice = answer.chooser.choose(logits, answer.ids) if likeliest is None else Choice(likeliest)
        answer.ids.append(choice.token)
        done = len(answer.ids) - answer.prompt >= answer.most
        reason: Reason | None = "stop" if choice.token in answer.ends else "length" if done else None
        if reason is not None:
            self.leave(answer.number)
        return Written(choice, reason)


def _kept(answer: _Answer) -> Row:
    assert answer.kept is not None
    return answer.kept
