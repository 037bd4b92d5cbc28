"""What is said of tokens as they come is what decoding all of them at each gives, at a long answer's end too."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ray_lora.bases.load import locate
from ray_lora.inference.spoken import Spoken

LETTERS = "the cat 's not . , ! do n't Ümläut naïve 東京都 русский 👨‍👩‍👧‍👦 🇵🇪 \n\n é\u0301 ﷺ \ufffd x  y   z\t"
STOPS: list[tuple[str, ...]] = [(), ("xyz",), (". ", "\n\n"), ("東京",), ("e", "русский")]


def byte_level() -> Any:
    """GPT-2's kind: parts of characters are tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([LETTERS] * 3, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


def byte_fallback(strip: bool = True) -> Any:
    """Llama's kind: words with their space before them, and a token for each byte."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁the", "▁cat", "s", "▁not", ".", ",", "東", "京", "ß", "x", "yz", "▁▁", "\n", "'", "n't", "👨"]
    made = Tokenizer(models.BPE({piece: at for at, piece in enumerate(pieces)}, [], byte_fallback=True))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if strip else parts)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def word_pieces() -> Any:
    """BERT's kind: parts of words lose their mark, and what stands before a point is cleaned up."""
    pieces = ["[UNK]", "[SEP]", "the", "cat", "##s", "##ing", ".", ",", "do", "not", "'", "s", "n't", "東", "##京", "x"]
    made = Tokenizer(models.WordPiece({piece: at for at, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", sep_token="[SEP]")


def smollm2() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(locate("smollm2"))


class Whole:
    """The reference: all tokens are decoded at each."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop, self.ids = tokenizer, stop, list[int]()
        self.text, self.stopped = "", False

    def say(self, final: bool) -> str:
        if self.stopped:
            return ""
        whole: str = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        found = [at for stop in self.stop if (at := whole.find(stop)) >= 0]
        if found:
            self.stopped, whole = True, whole[: min(found)]
        elif not final:
            whole = whole.rstrip("\ufffd")
            begun = [size for stop in self.stop for size in range(1, len(stop)) if whole.endswith(stop[:size])]
            whole = whole[: len(whole) - max(begun, default=0)]
        fresh = whole[len(self.text) :]
        self.text += fresh
        return fresh

    def add(self, token: int) -> str:
        self.ids.append(token)
        return self.say(final=False)


def draw(tokenizer: Any, kind: int, dice: random.Random, count: int) -> list[int]:
    """Any tokens; a text's own; or mostly tokens of single bytes."""
    if kind == 0:
        return [dice.randrange(len(tokenizer)) for _ in range(count)]
    pieces = LETTERS.split(" ")
    if kind == 1:
        text = " ".join(dice.choice(pieces) for _ in range(count))
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found[:count]
    few = [dice.randrange(min(len(tokenizer), 300)) for _ in range(6)]
    return [dice.choice(few) if dice.random() < 0.9 else dice.randrange(len(tokenizer)) for _ in range(count)]


@pytest.mark.parametrize("make", [byte_level, byte_fallback, lambda: byte_fallback(strip=False), word_pieces, smollm2])
def test_what_is_said_is_what_decoding_the_whole_gives(make: Any) -> None:
    tokenizer, dice, stopped = make(), random.Random(5), 0
    for number in range(60):
        ids = draw(tokenizer, number % 3, dice, dice.choice((5, 40, 150)))
        stop = STOPS[number % len(STOPS)]
        ours, whole = Spoken(tokenizer, stop), Whole(tokenizer, stop)
        for at, token in enumerate(ids):
            assert ours.add(token) == whole.add(token), (number, at)
        assert ours.rest() == whole.say(final=True)
        assert (ours.text, ours.stopped) == (whole.text, whole.stopped)
        stopped += ours.stopped
    assert 0 < stopped < 50


def test_the_same_text_as_at_once() -> None:
    """Of what a model writes: whole characters."""
    tokenizer = byte_fallback()
    text = " ".join(LETTERS.split(" ") * 30)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    spoken = Spoken(tokenizer)
    said = "".join(spoken.add(token) for token in ids) + spoken.rest()
    assert said == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_a_long_answer_costs_no_more_a_token(make: Any) -> None:
    """Tokens that are decoded, counted; one run of bytes is cut too."""
    tokenizer, decoded = make(), [0]

    class Counted:
        convert_ids_to_tokens = tokenizer.convert_ids_to_tokens

        def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
            decoded[0] += len(ids)
            return str(tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    for text, most in [("the cat 's " * 400, 40), ("русский" * 300, 300)]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        decoded[0], spoken = 0, Spoken(Counted(), ("never",))
        said = "".join(map(spoken.add, ids)) + spoken.rest()
        assert said == tokenizer.decode(ids, skip_special_tokens=True)
        assert decoded[0] < most * len(ids)
