"""Messages of a dialogue, and the text that a base's own chat template makes of them: a dialogue is

    [{"role": "user", "content": "What is the capital of Peru?"}, {"role": "assistant", "content": "Lima."}]

Its answer is the last message where that is the assistant's; all before it is the prompt. It knows templates and texts,
no tokens and no tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from ray_lora.errors import DataError, RecipeError
from ray_lora.tasks.rows import is_text, say_text, shown

ROLES = ("system", "user", "assistant")
ANSWERS = "assistant"


class Dialogues:
    """One base's chat template.

    Raises:
        RecipeError: the base has none.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise RecipeError(
                "rows: messages need a base with a chat template, and this base's tokenizer has none; choose a base "
                "that was made for dialogues, or write rows of prompt and completion"
            )
        self._tokenizer = tokenizer

    def parts(self, messages: object) -> tuple[str, str | None]:
        """The prompt as the template writes it, up to where the answer begins, and the answer with what ends it; None
        where the last message is not the assistant's.

        Raises:
            DataError: these are no messages, or the template refuses them.
        """
        why = wrong(messages)
        if why is not None:
            raise DataError(why)
        told = [{"role": message["role"], "content": message["content"]} for message in _listed(messages)]
        if told[-1]["role"] != ANSWERS:
            return self._write(told, begins=True), None
        prompt, whole = self._write(told[:-1], begins=True), self._write(told, begins=False)
        if not whole.startswith(prompt):
            raise DataError(
                f"this base's chat template writes what comes before an answer in another way once the answer is "
                f"there ({shown(prompt[-40:])}); write rows of prompt and completion"
            )
        return prompt, self._ended(whole[len(prompt) :])

    def end(self) -> str:
        """What the template writes after an answer; empty where it writes nothing."""
        _, answer = self.parts([{"role": "user", "content": "a"}, {"role": ANSWERS, "content": "b"}])
        return str(answer).rpartition("b")[2]

    @cached_property
    def ends(self) -> frozenset[int]:
        """The token that the template ends an answer with, where that is one that is no text."""
        told = self.end().strip()
        found = self._tokenizer(told, add_special_tokens=False)["input_ids"] if told else []
        special = set(self._tokenizer.all_special_ids)
        return frozenset(special.intersection(found)) if len(found) == 1 else frozenset()

    def _ended(self, answer: str) -> str:
        """An answer without the blanks that come after the token that ends it."""
        end = getattr(self._tokenizer, "eos_token", None)
        bare = answer.rstrip()
        return bare if end and bare.endswith(end) else answer

    def _write(self, messages: Sequence[Mapping[str, str]], begins: bool) -> str:
        from jinja2 import TemplateError

        try:
            written: str = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=begins
            )
        except TemplateError as error:
            raise DataError(f"this base's chat template refuses these messages: {error}") from None
        return written


def wrong(messages: object, answered: bool = False) -> str | None:
    """What is wrong with the messages of one row; None where nothing is.

    Args:
        answered: whether the last must be the assistant's, as in rows that train.
    """
    listed = _listed(messages)
    if not listed:
        return f"messages {shown(messages)} are no messages; write a list of {{'role': ..., 'content': ...}}"
    for number, message in enumerate(listed, start=1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            return f"message {number} {shown(message)} has no role and content; write both"
        odd = sorted(name for name, value in message.items() if name not in ("role", "content") and value)
        if odd:
            return f"message {number} has {', '.join(map(str, odd))}, which is not read; write role and content alone"
        if message["role"] not in ROLES:
            return f"message {number} has role {shown(message['role'])}; roles are {', '.join(ROLES)}"
        if message["role"] == "system" and number > 1:
            return f"message {number} is the system's; only the first can be"
        if not is_text(message["content"]):
            return f"message {number}: {say_text(message['content'], 'content')}"
    if all(message["role"] != "user" for message in listed):
        return "the messages have none of role user; an answer answers one"
    if listed[-1]["role"] == ANSWERS and len(listed) > 1 and listed[-2]["role"] == ANSWERS:
        return "the last two messages are the assistant's; write them as one"
    if answered and listed[-1]["role"] != ANSWERS:
        return f"the last message is the {listed[-1]['role']}'s; the last of a training row is the assistant's answer"
    return None


def _listed(messages: object) -> Sequence[Any]:
    return messages if isinstance(messages, (list, tuple)) else ()
