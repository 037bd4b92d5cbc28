"""Which model types of transformers work here: the library beside plain PEFT, type by type.

    python -m benchmarks.model_types [--only bert swin ...] [--fresh]

For every type with a class for classification: a tiny random base, three PEFT adapters of unlike ranks on its linear
layers (of images: its convolutions too), and rows of unlike lengths through one `predict`. The oracle is plain PEFT on
the plain class, one adapter and one row at a time, unpadded, in float32.

    outcome      right: within 1e-5 (of the largest answer where that is above 1); wrong: not, and nobody said so;
                 refused: an error of this library; fails: an error from below; not built: no tiny model, or the plain
                 class itself does not answer
    way          how rows shared a pass
    difference   the largest from the oracle, over the largest answer where that is above 1
    padding      whether the plain class answers a padded row as it answers the row alone

Types that the result file has are not run again; `--only` and `--fresh` run them. The table goes to docs/model-types.md.
"""

from __future__ import annotations

import argparse
import inspect
import json
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import RESULTS, write
from benchmarks.tiny_models import AUTO, SIDE, VOCABULARY, Kind, save_tiny
from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.load import load_base
from ray_lora.bases.padding import pad
from ray_lora.engine import AdapterEngine
from ray_lora.engine.layers import is_linear, refusal
from ray_lora.errors import RayLoraError
from ray_lora.inference.predict import predict
from ray_lora.recipe import BaseSpec

RANKS, LABELS = (2, 4, 7), (2, 3, 2)  # of the adapters
LENGTHS = (20, 3, 13, 19, 1, 7, 12, 20)  # tokens of the rows, which the adapters take in turn
SHORTEST = {"canine": 4}  # where one token is too short for the plain class itself
TOLERANCE = 1e-5
LIMIT = 20  # for one type
PAGE = Path(__file__).parent.parent / "docs" / "model-types.md"
MARKS = "<!-- made by benchmarks/model_types.py -->", "<!-- end -->"

Row = dict[str, Any]
Entry = dict[str, Any]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", nargs="+", default=[], metavar="TYPE")
    options.add_argument("--fresh", action="store_true")
    asked = options.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "model_types.json"
    known: dict[str, dict[str, Entry]] = {"text": {}, "image": {}}
    if path.exists() and not asked.fresh:
        known |= json.loads(path.read_text())["types"]
    for kind, model_type in candidates():
        if model_type not in asked.only if asked.only else model_type in known[kind]:
            continue
        began = time.perf_counter()
        known[kind][model_type] = entry = examine(model_type, kind)
        known[kind] = dict(sorted(known[kind].items()))
        print(f"{time.perf_counter() - began:5.1f} s  {kind} {model_type}: {line(entry)}", flush=True)
        write("model_types", {"what": __doc__, "types": known})
    write_page(known)


def candidates() -> list[tuple[Kind, str]]:
    """Every type for which transformers has a class that classifies texts or images."""
    from transformers.models.auto import modeling_auto as auto

    text, image = auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    return [("text", name) for name in sorted(text)] + [("image", name) for name in sorted(image)]


def class_of(model_type: str, kind: Kind) -> str:
    """The plain class's name by transformers' own table."""
    from transformers.models.auto import modeling_auto as auto

    known = {
        "text": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "image": auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    }[kind][model_type]
    return str(known if isinstance(known, str) else known[0])


def line(entry: Entry) -> str:
    """What is said of a type on one line."""
    told = [entry["outcome"], entry["way"], entry["difference"], f"padding {entry['padding']}", entry["note"]]
    return ", ".join(str(part) for part in told if part)


# ---------------------------------------------------------------- one type


def examine(model_type: str, kind: Kind) -> Entry:
    """What becomes of one type; whatever goes wrong with it is part of the answer."""
    entry: Entry = {"class": class_of(model_type, kind), "outcome": "not built"}
    entry |= {"way": None, "difference": None, "padding": None, "note": ""}
    with tempfile.TemporaryDirectory() as scratch, _quiet(), _within(LIMIT):
        try:
            oracle = Oracle(model_type, kind, Path(scratch))
            expected = oracle.answers()
            entry["padding"] = oracle.padding() if kind == "text" else None
            entry["note"] = oracle.doubt(expected)
            entry |= beside(oracle, expected)
        except Exception as error:
            entry["note"] = _said(error)
    return entry


def beside(oracle: Oracle, expected: Sequence[Tensor]) -> Entry:
    """The library on the oracle's base, adapters and rows."""
    engine = None
    try:
        base = load_base(BaseSpec(model=str(oracle.folder), dtype="float32"))
        engine = AdapterEngine(base, slots=len(RANKS), max_rank=max(RANKS))
        slots = [engine.load(Adapter.load(folder)) for folder in oracle.saved]
        task = _Rows(oracle.kind, oracle.padding_id)
        of_row = [slots[row % len(slots)] for row in range(len(oracle.rows))]
        answers = predict(engine, dict.fromkeys(slots, task), oracle.rows, of_row)  # type: ignore[arg-type]
        difference = max(_apart(torch.tensor(ours), theirs) for ours, theirs in zip(answers, expected, strict=True))
        outcome = "right" if difference <= TOLERANCE else "wrong"
        return {"outcome": outcome, "way": way(engine), "difference": float(f"{difference:.1e}")}
    except Exception as error:
        return {"outcome": "refused" if isinstance(error, RayLoraError) else "fails", "note": _said(error)}
    finally:
        if engine is not None:
            engine.close()


def way(engine: AdapterEngine) -> str:
    """How rows of unlike adapters and lengths shared a pass of this engine."""
    return "mixed" if engine.pads else "joined"


class Oracle:
    """A tiny base, three adapters that plain PEFT saved, rows, and what plain PEFT answers them one at a time."""

    def __init__(self, model_type: str, kind: Kind, scratch: Path) -> None:
        import transformers

        self.kind, self.folder = kind, scratch / "base"
        config = save_tiny(model_type, kind, self.folder)
        self.padding_id = int(getattr(config.get_text_config(), "pad_token_id", 0) or 0)
        auto = getattr(transformers, AUTO[kind])
        eager = {"attn_implementation": "eager"} if kind == "text" else {}
        self.models, self.saved = [], []
        for number, (rank, labels) in enumerate(zip(RANKS, LABELS, strict=True)):
            torch.manual_seed(number)
            model = auto.from_pretrained(self.folder, num_labels=labels, **eager)
            model.config.get_text_config().pad_token_id = self.padding_id
            self.models.append(wrap(model, kind, number, rank))
            self.saved.append(scratch / f"adapter-{number}")
            self.models[-1].save_pretrained(self.saved[-1])
        self.rows = _texts(model_type, config) if kind == "text" else _images(config)

    def answers(self) -> list[Tensor]:
        """Logits of each row alone, by the adapter whose turn it is."""
        task = _Rows(self.kind, self.padding_id)
        models = self.models
        return [self._ask(models[i % len(models)], task.collate([row]))[0] for i, row in enumerate(self.rows)]

    def padding(self) -> str:
        """Whether a row of a padded batch is answered as the row alone is."""
        task, pair = _Rows(self.kind, self.padding_id), [self.rows[0], self.rows[2]]
        try:
            padded = self._ask(self.models[0], task.collate(pair))
            alone = torch.cat([self._ask(self.models[0], task.collate([row])) for row in pair])
        except Exception as error:
            return f"fails: {_said(error)}"
        apart = _apart(padded, alone)
        return "safe" if apart <= TOLERANCE else f"changes the answer by {apart:.0e}"

    def doubt(self, expected: Sequence[Tensor]) -> str:
        """Why the comparison might show nothing, or an empty string."""
        if not all(bool(answer.isfinite().all()) for answer in expected):
            return "the plain class answers with numbers that are not finite"
        layers = [m for model in self.models for m in model.modules() if hasattr(m, "lora_A")]
        for layer in layers:
            layer.scaling["default"], layer.kept = 0.0, layer.scaling["default"]
        bare = self.answers()
        for layer in layers:
            layer.scaling["default"] = layer.kept
        moved = min(_apart(one, other) for one, other in zip(bare, expected, strict=True))
        return "" if moved > 100 * TOLERANCE else f"adapters move the answers by {moved:.0e} only"

    def _ask(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        known = inspect.signature(model.get_base_model().forward).parameters  # FNet's takes no attention_mask
        with torch.inference_mode():
            logits: Tensor = model(**{name: value for name, value in inputs.items() if name in known}).logits
        return logits


def wrap(model: Any, kind: Kind, seed: int, rank: int) -> Any:
    """PEFT's LoRA on every linear layer of the backbone (of images: convolutions that can hold one too); all random."""
    from peft import LoraConfig, get_peft_model

    prefix = model.base_model_prefix + "."
    if not hasattr(model, model.base_model_prefix):
        prefix = next(name for name, child in model.named_children() if list(child.children())) + "."
    targets: str | list[str] = "all-linear"
    if kind == "image":
        targets = [n for n, m in model.named_modules() if n.startswith(prefix) and _holds(m)]
    head = [name for name, child in model.named_children() if name + "." != prefix and list(child.parameters())]
    task = "SEQ_CLS" if kind == "text" else None
    config = LoraConfig(r=rank, lora_alpha=5 + rank, target_modules=targets, modules_to_save=head, task_type=task)
    wrapped = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.2, generator=generator))
    return wrapped.eval()


def _holds(module: nn.Module) -> bool:
    return is_linear(module) or (isinstance(module, nn.Conv2d) and refusal(module) is None)


class _Rows:
    """As much of a task as `predict` asks for; its answers are the logits."""

    def __init__(self, kind: Kind, padding_id: int) -> None:
        self._kind, self._tokenizer = kind, SimpleNamespace(padding_side="right", pad_token_id=padding_id)

    def size(self, features: Row) -> int:
        return len(features["input_ids"]) if self._kind == "text" else 100

    def collate(self, features: Sequence[Row]) -> dict[str, Tensor]:
        if self._kind == "text":
            return pad([row["input_ids"] for row in features], self._tokenizer)
        return {"pixel_values": torch.stack([row["pixel_values"] for row in features])}

    def decode(self, outputs: Any, features: Sequence[Row], parameters: Mapping[str, Any]) -> list[list[float]]:
        return [row.tolist() for row in outputs.logits]


def _texts(model_type: str, config: Any) -> list[Row]:
    """Rows of random tokens; those of an encoder and decoder end with the token that its class looks for."""
    generator = torch.Generator().manual_seed(0)
    shortest = SHORTEST.get(model_type, 1)
    rows = [torch.randint(5, VOCABULARY, (max(n, shortest),), generator=generator).tolist() for n in LENGTHS]
    end = [getattr(config, "eos_token_id", None)] if getattr(config, "is_encoder_decoder", False) else []
    return [{"input_ids": row[: len(row) - len(end)] + end} for row in rows]


def _images(config: Any) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    side = getattr(config, "image_size", SIDE)
    side = side if isinstance(side, int) else SIDE
    return [{"pixel_values": torch.randn(3, side, side, generator=generator)} for _ in LENGTHS]


def _apart(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, over the largest answer where that is above 1."""
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1))


# ---------------------------------------------------------------- errors, warnings, time


class _TooLong(Exception):
    """One type took longer than its share."""


def _said(error: BaseException) -> str:
    """An error in one line; where it came from, when it is not one of ours."""
    lines = str(error).strip().splitlines() or [""]
    said = lines[0][:300]
    if isinstance(error, RayLoraError):
        return said
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name})" if frames else ""
    return f"{type(error).__name__}: {said}{where}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Heads are new on purpose, and PEFT and transformers warn of it."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.set_verbosity(level)


@contextmanager
def _within(seconds: int) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise _TooLong(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ---------------------------------------------------------------- the page


def table(types: Mapping[str, Mapping[str, Entry]]) -> str:
    """The result file's types as Markdown, texts first."""
    parts = []
    for kind, entries in types.items():
        counts: dict[str, int] = {}
        for entry in entries.values():
            counts[_way(entry)] = counts.get(_way(entry), 0) + 1
        told = ", ".join(f"{number} {name}" for name, number in sorted(counts.items(), key=lambda item: -item[1]))
        parts += [f"### {kind.capitalize()} types", "", f"{len(entries)} types: {told}.", ""]
        parts += ["| type | class | way | difference | padding | note |", "| --- | --- | --- | --- | --- | --- |"]
        for name, entry in entries.items():
            difference = "" if entry["difference"] is None else f"{entry['difference']:.0e}"
            note = str(entry["note"]).replace("|", "\\|")
            cells = [f"`{name}`", entry["class"] or "", _way(entry), difference, entry["padding"] or "", note]
            parts.append("| " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


def _way(entry: Entry) -> str:
    """What the table says in the column `way`: how rows share a pass when the answers are right, else the outcome."""
    return str(entry["way"] if entry["outcome"] == "right" else entry["outcome"])


def write_page(types: Mapping[str, Mapping[str, Entry]], page: Path = PAGE) -> None:
    """Put the table between the page's two marks."""
    text = page.read_text()
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    page.write_text(f"{before}{MARKS[0]}\n\n{table(types)}\n{MARKS[1]}{after}")


if __name__ == "__main__":
    main()
