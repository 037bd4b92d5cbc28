"""Prompts as one base reads them: a text, or messages as its chat template writes them, whichever adapter goes on.

    prompts = Prompts(base.processor, base.config)       # RecipeError: the base has no tokenizer
    prompts.of_text("The capital of Peru is")            # [5, 6, 7]
    prompts.of_messages([{"role": "user", "content": "Capital of Peru?"}])
    prompts.ends                                         # tokens that end an answer

Tokens are those that training gave the same prompt. Nothing is cut: what is too long is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray_lora.errors import DataError
from ray_lora.inference.spoken import Spoken
from ray_lora.tasks.dialogues import ANSWERS, Dialogues
from ray_lora.tasks.generation_options import TextGenerationSpec
from ray_lora.tasks.text_generation import TextGeneration


class TooLongError(DataError):
    """A prompt leaves no room for an answer."""


class Prompts:
    """One base's prompts.

    Args:
        processor: its tokenizer. config: its config, which may name tokens that end an answer.
        most: tokens that a prompt and its answer may have, where the base allows more.

    Attributes:
        head: the plain class that says what follows. longest: tokens of prompt and answer. ends: tokens that end one.

    Raises:
        RecipeError: the base has no tokenizer.
    """

    def __init__(self, processor: Any, config: Any, most: int) -> None:
        self._task, self._tokenizer = TextGeneration(TextGenerationSpec(max_length=None), processor), processor
        self.head = self._task.head
        self.longest = min(self._task.longest, most)
        self.ends = self._task.ends | ends_of(config)
        self._dialogues = Dialogues(processor) if getattr(processor, "chat_template", None) else None

    def of_text(self, text: object) -> list[int]:
        """A text's tokens.

        Raises:
            DataError: it is no text, or too long.
        """
        return self._fitting(self._task.prompt(text))

    def of_messages(self, messages: object) -> list[int]:
        """The tokens of messages, up to where the assistant's answer begins.

        Raises:
            DataError: these are no messages, the last is the assistant's, or they are too long.
            RecipeError: the base has no chat template.
        """
        dialogues = self._dialogues or Dialogues(self._tokenizer)
        prompt, answer = dialogues.parts(messages)
        if answer is not None:
            raise DataError(f"the last message is the {ANSWERS}'s; end with the one that is to be answered")
        return self._fitting(self._tokenizer(prompt, add_special_tokens=False)["input_ids"])

    @property
    def message_ends(self) -> frozenset[int]:
        """Tokens that end an answer to messages: the template may have one of its own."""
        return self.ends if self._dialogues is None else self.ends | self._dialogues.ends

    def spoken(self, stop: Sequence[str]) -> Spoken:
        """The text of an answer, as its tokens come."""
        return Spoken(self._tokenizer, stop)

    def piece(self, token: int) -> str:
        """One token by itself; part of a character is U+FFFD."""
        found: str = self._tokenizer.decode([token])
        return found

    def is_special(self, token: int) -> bool:
        """Whether a token is no text."""
        return token in self._tokenizer.all_special_ids

    def _fitting(self, ids: list[int]) -> list[int]:
        if not ids:
            raise DataError("the prompt has no tokens on this base; write more of it")
        if len(ids) >= self.longest:
            raise TooLongError(
                f"the prompt has {len(ids)} tokens, and prompt and answer together have {self.longest} at most here; "
                "write less"
            )
        return ids


def ends_of(config: Any) -> frozenset[int]:
    """The tokens that a base's config says end a text."""
    named = getattr(config, "eos_token_id", None)
    return frozenset(token for token in (named if isinstance(named, list) else [named]) if token is not None)
