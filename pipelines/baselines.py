"""What an adapter is compared with: the best head alone on the frozen base, and every weight trained.

    data = Data(recipe, "data/tweets/test.parquet")
    score_full(data, 3e-4, seed=0, splits=["test"])["test"]["f1_macro"]

Both are of any task: the plain class is the one that `task.head` names; loss, answers and scores are the task's. Rows,
their order, epochs, batches, schedule and clipping are the recipe's, as the adapter's. Weights, gradients and moments
are float32; where the base's recipe has it in bfloat16, as adapters train on it, products are in bfloat16 (autocast).
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import transformers
from transformers import get_scheduler

from ray_lora.bases import builders
from ray_lora.bases.built import plain_of
from ray_lora.bases.load import Base, load_base, locate
from ray_lora.bases.plain import HeadSpec
from ray_lora.data.check import learn
from ray_lora.data.rows import read_rows
from ray_lora.engine import AdapterEngine
from ray_lora.inference.baseline import head_only
from ray_lora.inference.continued import Continuing
from ray_lora.inference.head_alone import head_alone
from ray_lora.inference.predict import chunks, predict
from ray_lora.inference.prompts import ends_of
from ray_lora.inference.windows import spread_windows
from ray_lora.inference.written import Writing
from ray_lora.recipe import Json, LoraSpec, Recipe, TrainingSpec
from ray_lora.tasks import Features, Task, build_task, scoring_of, task_of
from ray_lora.tasks.classification import Classification
from ray_lora.training.member import steps_of

_WINDOWS = 16  # in one pass of full training: a long row of many windows is several passes' worth of memory
HEAD_RATES = (1e-3, 3e-3, 1e-2)  # of a head that is trained step by step; validation rows choose


@dataclass(frozen=True)
class Data:
    """The rows of a recipe and its held-out ones, read and encoded.

    Attributes:
        test: the file of held-out rows.
        most: of rows of each split; None for all.
    """

    recipe: Recipe
    test: str
    most: int | None = None

    @cached_property
    def base(self) -> Base:
        return load_base(self.recipe.base)

    @cached_property
    def task(self) -> Task:
        """The recipe's task, its options completed by the training rows."""
        spec, data = self.recipe.task, self.recipe.data
        assert data.train is not None
        kind = task_of(spec)
        rows = read_rows(data.train, data, kind.columns)
        return build_task(learn(kind, spec, [rows.table]), self.base.processor)

    def rows(self, split: str) -> list[Features]:
        """Encoded rows of "train", "validation" or "test"."""
        data = self.recipe.data
        path = {"train": data.train, "validation": data.validation, "test": self.test}[split]
        assert path is not None
        return self.task.encode(read_rows(path, data, self.task.columns, split).table.to_pylist()[: self.most])


def score_head(data: Data) -> dict[str, float]:
    """Held-out scores of the best head alone on the frozen base: of the task's own class, and for a label a row also a
    logistic regression on mean-pooled features, which is often better; validation rows choose. A head whose loss has no
    one bottom, or that is the base's own, is trained step by step as an adapter is, at the best of `HEAD_RATES`."""
    task = data.task
    if not getattr(task, "fits_head", True) or data.base.own_outputs(task.head.architecture) is not None:
        return _trained_head(data)
    engine = AdapterEngine(data.base, slots=1, max_rank=1)
    train, validation, test = (data.rows(split) for split in ("train", "validation", "test"))
    heads = [head_alone(engine, task, train, validation)]
    if isinstance(task, Classification) and not scoring_of(task):  # a regression has labels and no scores
        heads.append(head_only(engine, task, train, validation))
    better = max if task.metrics[task.metric] == "max" else min
    best = better(heads, key=lambda answer: task.score(answer(validation), validation)[task.metric])
    scores = task.score(best(test), test)
    engine.close()
    return scores


def _trained_head(data: Data) -> dict[str, float]:
    task, better = data.task, max if data.task.metrics[data.task.metric] == "max" else min
    validation, test = data.rows("validation"), data.rows("test")
    models = [train_full(data, rate, 0, only=head_names(data.base)) for rate in HEAD_RATES]
    scores = [task.score(answers_of(model, task, validation), validation)[task.metric] for model in models]
    return task.score(answers_of(models[scores.index(better(scores))], task, test), test)


def head_names(base: Base) -> str:
    """What the names of the head's own parameters match in the plain class."""
    return rf"(?!{re.escape(base.prefix)}\.)"


def score_bare(data: Data) -> dict[str, float]:
    """Held-out scores of the base before any training: a fresh head, or the base's own where it has this one."""
    engine = AdapterEngine(data.base, slots=1, max_rank=1)
    slot = engine.init(LoraSpec(r=1, target_modules=data.recipe.lora.target_modules), data.task.head, seed=0)
    test = data.rows("test")
    told = [scoring_of(data.task)] * len(test)
    scores = data.task.score(predict(engine, {slot: data.task}, test, [slot] * len(test), told), test)
    engine.close()
    return scores


def score_full(data: Data, rate: float, seed: int, splits: Sequence[str]) -> dict[str, dict[str, float]]:
    """Scores on each of the splits of every weight trained at `rate`."""
    model, found = train_full(data, rate, seed), {}
    with precision_of(data.base):
        for split in splits:
            rows = data.rows(split)
            found[split] = data.task.score(answers_of(model, data.task, rows), rows)
    return found


def train_full(data: Data, rate: float, seed: int, only: str = "") -> Any:
    """The plain class with every weight trained on the recipe's rows.

    Args:
        only: a regular expression; what it does not match the beginning of a parameter's name stays as it is. A head
            that shares weights with the backbone has a copy of them then.
    """
    torch.manual_seed(seed)
    task, training = data.task, data.recipe.training
    model = plain_model(data.recipe, task)
    if only:
        untie(model, data.base.prefix)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(re.match(only, name) is not None)
    rows = data.rows("train")
    batch = training.per_device_train_batch_size
    steps = steps_of(training, math.ceil(len(rows) / batch))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=training.weight_decay, fused=True)
    warm = training.warmup_steps
    schedule = get_scheduler(
        training.lr_scheduler_type,
        optimizer,
        num_warmup_steps=math.ceil(steps * warm) if warm < 1 else int(warm),
        num_training_steps=steps,
    )
    model.train(not only)
    for chosen in batches(len(rows), training, seed, steps):
        with precision_of(data.base):
            step(model, task, [rows[row] for row in chosen])
        torch.nn.utils.clip_grad_norm_(trained, training.max_grad_norm or float("inf"))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


def precision_of(base: Base) -> torch.autocast:
    """What products of a plain model in float32 are computed in, beside adapters on this base."""
    return torch.autocast(base.device.type, torch.bfloat16, enabled=base.dtype == torch.bfloat16)


def untie(model: Any, prefix: str) -> None:
    """Freeze everything and give what lies outside the backbone weights of its own, which train."""
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if name != prefix and not name.startswith(f"{prefix}."):
            for key, parameter in module.named_parameters(recurse=False):
                setattr(module, key, torch.nn.Parameter(parameter.detach().clone()))


def plain_model(recipe: Recipe, task: Task) -> Any:
    """The class of the task's head on the recipe's base, in float32: transformers', or a builder's own."""
    from ray_lora.bases.transformers_base import is_gguf

    head = task.head
    if builders.is_builder(recipe.base.model) or builders.of_folder(locate(recipe.base.model)) is not None:
        return _built_model(recipe, head)
    path = locate(recipe.base.model)
    told: dict[str, Any] = {"attn_implementation": "eager", "dtype": torch.float32}
    within = {"gguf_file": path.name} if is_gguf(path) else {}
    if within:
        told |= within | {"quantization_config": transformers.GgufConfig(dequantize=True)}
        path = path.parent
    config = transformers.AutoConfig.from_pretrained(path, num_labels=head.num_labels, **within)
    if head.attention is not None:  # a decoder's mask, as transformers' own config says it
        config.is_causal = head.attention == "causal"
    return getattr(transformers, head.architecture).from_pretrained(
        path, config=config, ignore_mismatched_sizes=True, **told
    )


def _built_model(recipe: Recipe, head: HeadSpec) -> Any:
    base = load_base(recipe.base.model_copy(update={"dtype": "float32"}))
    if base.own_outputs(head.architecture) is not None:  # which may share the backbone's weights
        ours = None if builders.is_builder(recipe.base.model) else builders.of_folder(locate(recipe.base.model))
        return plain_of(builders.build(recipe.base.model, "cpu", ours), head, "cpu").requires_grad_()
    model = base.fresh(head)
    assert model is not None
    setattr(model, base.prefix, copy.deepcopy(base.backbone))
    return model.requires_grad_()


def batches(rows: int, training: TrainingSpec, seed: int, steps: int) -> list[list[int]]:
    """Row numbers of each step: the order that a pack gives the adapter of this seed."""
    size, epoch = training.per_device_train_batch_size, 0
    found: list[list[int]] = []
    while len(found) < steps:
        draw = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(rows, generator=draw).tolist()
        found += [order[at : at + size] for at in range(0, rows, size)]
        epoch += 1
    return found[:steps]


def step(model: Any, task: Task, rows: Sequence[Features]) -> None:
    """The gradient of the rows' mean loss, summed over passes of some windows each."""
    features = spread_windows({0: task}, rows, [0] * len(rows)).features
    parts = [features[at : at + _WINDOWS] for at in range(0, len(features), _WINDOWS)]
    terms = 0.0
    for part in parts:
        losses, counts = task.loss(model(**task.collate(part)), part)
        losses.sum().backward()
        terms += float(counts.sum())
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= terms


def answers_of(model: Any, task: Task, rows: Sequence[Features]) -> list[Json]:
    """A plain model's answers that `task.score` takes, as the engine's `predict` gives an adapter's."""
    tasks, told = {0: task}, scoring_of(task)
    spread = spread_windows(tasks, rows, [0] * len(rows))
    parts: list[Any] = [None] * len(spread.features)
    sizes = [task.size(feature) for feature in spread.features]
    for chunk in chunks(sizes, [0] * len(sizes), 32):
        mine = [spread.features[row] for row in chunk]
        with torch.inference_mode():
            inputs = task.collate(mine)
            outputs = written(model, task, mine, inputs) if isinstance(task, Writing) else model(**inputs)
            decoded = task.decode(outputs, mine, told)
            if isinstance(task, Continuing) and (most := task.most(told)):
                pairs = zip(decoded, mine, strict=True)
                decoded = [task.with_written(one, *continued(model, task, row, most)) for one, row in pairs]
        for row, part in zip(chunk, decoded, strict=True):
            parts[row] = part
    return spread.whole(tasks, parts, [told] * len(rows))


def written(model: Any, task: Writing, rows: Sequence[Features], inputs: Mapping[str, torch.Tensor]) -> list[list[int]]:
    """What a plain model writes of each row by transformers' `generate`: the likeliest token, and the next."""
    given: dict[str, Any] = {name: tensor for name, tensor in inputs.items() if not name.startswith("decoder_")}
    begun = [task.begin(row, {}) for row in rows]
    prompt = torch.tensor([list(one.tokens) for one in begun])
    whole = torch.ones(
        given["input_features"].shape[::2], dtype=torch.long
    )  # which frames are a row's: all of a window
    tokens = transformers.GenerationMixin.generate(
        model,
        **given,
        attention_mask=whole,
        decoder_input_ids=prompt,
        max_length=None,
        max_new_tokens=begun[0].most,
        do_sample=False,
    )
    texts: list[list[int]] = tokens[:, prompt.shape[1] :].tolist()
    return [text[: text.index(task.end)] if task.end in text else text for text in texts]


def continued(model: Any, task: Continuing, row: Features, most: int) -> tuple[list[int], bool]:
    """What a plain model writes after a row's prompt by transformers' `generate`, and whether it came to its end."""
    ids, _ = task.opening(row)
    prompt = torch.tensor([ids])
    ends = sorted(task.ends | ends_of(model.config))
    told = {"attention_mask": torch.ones_like(prompt), "eos_token_id": ends, "pad_token_id": ends[0]}
    found = model.generate(prompt, max_length=None, max_new_tokens=most, do_sample=False, **told)
    tokens: list[int] = found[0, len(ids) :].tolist()
    return (tokens[:-1], True) if tokens[-1:] and tokens[-1] in ends else (tokens, False)
