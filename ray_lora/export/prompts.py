"""What a runner must know of a base and an adapter to read prompts, and to write what follows them.

It knows tokenizers and tasks: no graphs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray_lora.bases.base import Base
from ray_lora.errors import RecipeError
from ray_lora.inference.prompts import ends_of
from ray_lora.inference.sampling import Sampling
from ray_lora.recipe import Json
from ray_lora.tasks import Row
from ray_lora.tasks.dialogues import ANSWERS
from ray_lora.tasks.rows import is_text

MESSAGES = "messages"
_UNKNOWN = {  # what a template may do that a runner cannot, by the word that shows it
    "strftime_now": "writes today's date",
    "generation %}": "marks answers (generation)",
    "generation -%}": "marks answers (generation)",
}
_SIZES = (1, 2, 3, 5, 8, 13, 21)  # tokens of prompts that are drawn


def of_language_model(base: Base) -> dict[str, Json]:
    """How many tokens prompt and answer have together, and the tokens that a chat template may write.

    Raises:
        RecipeError: the tokenizer does what was not compared with what runs without transformers.
    """
    tokenizer = base.processor
    if not getattr(tokenizer, "is_fast", False):
        raise RecipeError(f"base {base.id!r} has no fast tokenizer, the only kind that runs without transformers")
    if tokenizer.clean_up_tokenization_spaces:
        raise RecipeError(
            f"the tokenizer of base {base.id!r} cleans up blanks (clean_up_tokenization_spaces), which was not "
            "compared with what runs without transformers"
        )
    return {"positions": positions_of(base), "special": dict(tokenizer.special_tokens_map)}


def positions_of(base: Base) -> int | None:
    """Tokens of prompt and answer that a base has places for; None where it has no bound."""
    found: int | None = getattr(base.config, "max_position_embeddings", None)
    return found


def save_prompts(base: Base, folder: Path) -> None:
    """The tokenizer's file, and the chat template where there is one."""
    base.processor.backend_tokenizer.save(str(folder / "tokenizer.json"))
    template = getattr(base.processor, "chat_template", None)
    if isinstance(template, str):
        (folder / "chat_template.jinja").write_text(template, "utf-8")


def goes_on(task: Any, base: Base) -> dict[str, Json]:
    """What is read, with what a prompt begins and an answer ends, and how long it is where nobody says more.

    Raises:
        RecipeError: the adapter's rows are messages, and the base's chat template needs more than messages.
    """
    messages = task.input == MESSAGES
    template = base.processor.chat_template if messages else ""
    why = next((why for word, why in _UNKNOWN.items() if word in template), None)
    if not isinstance(template, str) or why is not None:
        raise RecipeError(
            f"export of text-generation with rows: messages on base {base.id!r} is not supported, whose chat template "
            f"{why or 'is one of several'}; train on rows of prompt or text"
        )
    return {
        "column": task.input,
        "lead": [] if messages else task.lead,
        "most": task.spec.answer_tokens or Sampling().max_tokens,
        "ends": sorted(task.ends | ends_of(base.config)),
        "never": [],
        "never_first": [],
    }


def drawn_prompts(base: Base, task: Any) -> list[Row]:
    """Prompts of about so many tokens, without meaning."""
    places = positions_of(base)
    sizes = [size for size in _SIZES if places is None or 2 * size < places]
    texts = [base.processor.decode(row["input_ids"], skip_special_tokens=True) for row in base.examples(sizes or [1])]
    told = [text if is_text(text) else "a" for text in texts]
    if task.input == MESSAGES:
        return [{MESSAGES: [{"role": "user", "content": text}]} for text in told]
    return [{task.input: text} for text in told]


def to_answer(row: Row) -> Row:
    """A row of messages without the answer that it may end with; any other as it is."""
    told = row.get(MESSAGES)
    return {**row, MESSAGES: told[:-1]} if told and told[-1]["role"] == ANSWERS else row
