"""Rows written token by token: greedy tokens are plain PEFT's, whoever joins, leaves or aborts."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.plain import HeadSpec
from ray_lora.engine import AdapterEngine
from ray_lora.engine.decoding import Decoding
from ray_lora.errors import CapacityError, RecipeError
from ray_lora.inference.decoder import Decoder
from ray_lora.inference.sampling import Chooser, Sampling
from ray_lora.inference.spoken import Spoken
from ray_lora.recipe import LoraSpec
from tests.unit.bases import CAUSAL, VOCABULARY, open_base, plain, quiet_peft, save_language_model

HEAD = HeadSpec(CAUSAL, VOCABULARY)
KINDS = ("llama", "gpt2", "qwen2", "gemma2")
LAYERS = {"gpt2": ("c_attn", "c_proj"), "llama": ("q_proj", "v_proj", "down_proj")}


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_language_model(request.param, tmp_path_factory.mktemp("lm") / request.param)


@pytest.fixture
def engine(folder: Path) -> Iterator[AdapterEngine]:
    engine = AdapterEngine(open_base(folder), slots=3, max_rank=4)
    yield engine
    engine.close()


def filled(engine: AdapterEngine, kind: str, rank: int) -> int:
    spec = LoraSpec(r=rank, target_modules=LAYERS.get(kind, LAYERS["llama"]))
    slot = engine.init(spec, HEAD, seed=rank, peft_type="CAUSAL_LM")
    draw = torch.Generator().manual_seed(rank)
    engine.write(
        slot, {key: torch.randn(value.shape, generator=draw) * 0.3 for key, value in engine.read(slot).items()}
    )
    engine.refresh([slot])
    return slot


def theirs(folder: Path, adapter: Adapter | None, path: Path) -> Any:
    """Plain transformers, with the adapter as plain PEFT reads it."""
    model: Any = plain(folder, 1, architecture=CAUSAL)
    if adapter is not None:
        adapter.save(path)
        with quiet_peft():
            model = PeftModel.from_pretrained(model, str(path))
    return model.eval()


def goes_on(model: Any, ids: Sequence[int], count: int) -> list[int]:
    """Greedy tokens, without a cache."""
    found = list(ids)
    with torch.no_grad():
        for _ in range(count):
            found.append(int(model(input_ids=torch.tensor([found])).logits[0, -1].argmax()))
    return found[len(ids) :]


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(1, VOCABULARY) for _ in range(draw.choice((1, 3, 7, 14)))] for _ in range(count)]


def test_tokens_are_those_of_each_adapter_alone(folder: Path, engine: AdapterEngine, tmp_path: Path) -> None:
    """Rows of three adapters and of the base join at other times, some leave early; a prompt is read in pieces."""
    slots = [0, *(filled(engine, folder.name, rank) for rank in (1, 2, 4))]
    decoder, asked, draw = Decoder(engine, HEAD, longest=40, piece=5), prompts(14), random.Random(3)
    owner: dict[int, int] = {}
    written: dict[int, list[int]] = {}
    gone: set[int] = set()
    while decoder.rows or len(owner) < len(asked):
        for ids in asked[len(owner) : len(owner) + draw.randrange(4)]:
            [row] = decoder.join(slots[len(owner) % 4], ids, Sampling(max_tokens=6))
            owner[row], written[row] = len(owner), []
        for row, one in decoder.step().items():
            written[row].append(one.token)
            assert (one.reason == "length") == (len(written[row]) == 6)
        if decoder.rows and draw.random() < 0.15:
            gone.add(draw.choice(decoder.rows))
            decoder.leave(max(gone))
    assert decoder.kept == 0
    assert 0 < len(gone) < len(asked) / 2
    models = {slot: theirs(folder, engine.export(slot) if slot else None, tmp_path / str(slot)) for slot in slots}
    for row, number in owner.items():
        found = goes_on(models[slots[number % 4]], asked[number], 6)
        assert written[row] == found[: len(written[row])]
        assert len(written[row]) == 6 or row in gone
    assert len({tuple(tokens) for tokens in written.values()}) > len(slots)


def test_answers_to_one_prompt_share_it_and_end_by_themselves(engine: AdapterEngine, folder: Path) -> None:
    slot = filled(engine, folder.name, 2)
    decoder = Decoder(engine, HEAD, piece=4)
    sampling = Sampling(max_tokens=5, temperature=1.5, seed=7, n=3)

    def answers(company: int, leaves: bool) -> list[list[int]]:
        rows = decoder.join(slot, [5, 6, 7, 8, 9, 10], sampling)
        for ids in prompts(company):
            decoder.join(0, ids, Sampling(max_tokens=3))
        found: dict[int, list[int]] = {row: [] for row in rows}
        if leaves:
            decoder.step()
            decoder.leave(rows[0])
            decoder.leave(rows[0])
        while decoder.rows:
            for row, one in decoder.step().items():
                found.setdefault(row, []).append(one.token)
        assert decoder.kept == 0
        return [found[row] for row in rows]

    alone = answers(0, leaves=False)
    assert answers(4, leaves=False) == alone
    assert answers(2, leaves=True)[1:] == alone[1:]
    assert len({tuple(tokens) for tokens in alone}) == 3


def test_a_place_is_no_memory_of_who_had_it(engine: AdapterEngine, folder: Path) -> None:
    """What is no number in a row that has left does not reach the next one."""
    decoding, ids = Decoding(engine, HEAD), [5, 6, 7]
    row = decoding.enter(0, 10)
    alone = decoding.advance([(row, ids)])
    decoding.leave(row)
    wrong = decoding.enter(0, 40)
    decoding.advance([(wrong, [1] * 30)])
    for pair in wrong.place.slab.layers.values():
        for kept in pair:
            kept[wrong.place.index, :, :30] = torch.nan
    decoding.leave(wrong)
    row = decoding.enter(0, 10)
    torch.testing.assert_close(decoding.advance([(row, ids)]), alone)
    decoding.leave(row)


def test_what_a_row_cannot_do_is_said(engine: AdapterEngine, folder: Path) -> None:
    slot = filled(engine, folder.name, 2)
    decoder = Decoder(engine, HEAD, capacity=30, longest=12)
    with pytest.raises(CapacityError, match="13 tokens leaves no room; a row has at most 12"):
        decoder.join(slot, [1] * 13, Sampling())
    decoder.join(slot, [1] * 8, Sampling(max_tokens=50))
    with pytest.raises(CapacityError, match="rows of 12 tokens are in the making and 24 more pass 30; wait"):
        decoder.join(slot, [1, 2], Sampling(max_tokens=10, n=2, temperature=1.0))
    with pytest.raises(CapacityError, match="slot 3 holds no adapter"):
        decoder.join(3, [1], Sampling(max_tokens=2))
    engine.evict(slot)
    filled(engine, folder.name, 4)
    with pytest.raises(CapacityError, match=f"slot {slot} holds another adapter than when the row began"):
        decoder.step()


# -------------------------------------------------------------------- sampling and texts


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"temperature": 2.5}, "temperature 2.5 must be a number from 0 to 2"),
        ({"temperature": True}, "temperature True must be a number"),
        ({"top_p": 0}, "top_p 0 leaves no token"),
        ({"top_k": -1}, "top_k -1 must be a whole number from 0"),
        ({"repetition_penalty": 0}, "repetition_penalty 0 must be a number from 0.1 to 10"),
        ({"max_tokens": 0}, "max_tokens 0 must be a whole number from 1 to 4096"),
        ({"max_tokens": 1.5}, "max_tokens 1.5 must be a whole number"),
        ({"n": 17, "temperature": 1}, "n 17 must be a whole number from 1 to 16"),
        ({"logprobs": 21}, "logprobs 21 must be a whole number from 0 to 20"),
        ({"stop": ["a", ""]}, "each of 1 to 256 characters"),
        ({"stop": ["a"] * 5}, "a list of at most 4"),
        ({"temprature": 1}, "are not known; did you mean 'temperature'"),
        ({"temperature": float("nan")}, "temperature nan must be"),
    ],
)
def test_what_is_out_of_bounds_is_refused(told: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Sampling.of(told)


def test_sampling_is_transformers_own() -> None:
    """Draws fall where top-k, top-p, temperature and the penalty leave something; the same seed draws the same."""
    logits, ids = torch.tensor([3.0, 2.9, 1.0, 0.9, -5.0]), [0]
    some = Sampling.of({"temperature": 0.5, "top_k": 3, "top_p": 0.6, "repetition_penalty": 3.0, "seed": 4})
    drawn = [Chooser(some).choose(logits, ids).token for _ in range(5)]
    assert drawn == [1] * 5
    hot = Sampling.of({"temperature": 2.0, "seed": 4})
    one, other = ([chooser.choose(logits, ids).token for _ in range(40)] for chooser in (Chooser(hot), Chooser(hot)))
    assert one == other
    assert len(set(one)) > 2
    second = Chooser(hot, number=1)
    assert [second.choose(logits, ids).token for _ in range(40)] != one
    told = Chooser(Sampling.of({"logprobs": 2})).choose(logits, ids)
    assert told.token == 0
    assert told.logprob == pytest.approx(float(logits.log_softmax(-1)[0]))
    assert [token for token, _ in told.best] == [0, 1]


class Letters:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return bytes(ids).decode(errors="replace")

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [chr(token) for token in ids]


def test_what_is_said_ends_before_a_stop_text_across_tokens() -> None:
    spoken = Spoken(Letters(), stop=("END", "\n\n"))
    said = [spoken.add(byte) for byte in "Où? EN EXENDmore".encode()]
    assert "".join(said) == spoken.text == "Où? EN EX"
    assert spoken.stopped
    assert said[1] == ""  # half of a character
    assert said[said.index("EN ")] == "EN "  # was held back, since a stop text begins so
    other = Spoken(Letters(), stop=("END",))
    assert "".join(other.add(byte) for byte in b"an EN") == "an "
    assert other.rest() == "EN"
    assert not other.stopped
