"""What somebody's rows are for: a task and its columns, guessed from names, types and values.

    found = guess(find_files("reviews.csv"))
    found.task, found.columns        # {"type": "text-classification"}, {"text": "review", "label": "stars"}

A guess is for a person to read and to correct: it says why, and what else it might have been. It knows files, columns
and what tasks call theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from ray_lora.data.files import File
from ray_lora.data.piece_rows import read_written
from ray_lora.data.pieces import cut
from ray_lora.data.seen_columns import Seen, look_at_columns
from ray_lora.errors import DataError
from ray_lora.recipe import Json
from ray_lora.tasks import Column
from ray_lora.tasks.table import TASKS

SAMPLE = 2_000  # rows that are looked at, and of files in folders fewer
_MEMBERS = 16
_FEW = 0.1  # a share of rows below which a label is rare

# what columns are called that say the same
_CALLED: Mapping[str, Sequence[str]] = {
    "text": ("text", "sentence", "content", "review", "body", "message", "comment", "tweet", "document", "title"),
    "label": ("label", "labels", "class", "category", "target", "sentiment", "intent", "topic", "stars", "rating"),
    "score": ("score", "rating", "stars", "similarity", "value", "target", "label"),
    "prompt": ("prompt", "instruction", "question", "input", "source"),
    "completion": ("completion", "response", "output", "answer", "target", "chosen"),
    "next": ("next", "next_item", "target"),
}
_PAIRS = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("text1", "text2"), ("question1", "question2"),
    ("text", "text_pair"), ("query", "passage"), ("sentence", "question"),
)  # fmt: skip


@dataclass(frozen=True)
class Guess:
    """A task for a file's rows.

    Attributes:
        task: the recipe's section.
        columns: the task's column -> the file's, where they are called otherwise.
        why: in a sentence.
        notes: what else it might have been, and what a person should look at.
        labels: how many rows of the sample have each; none of a task without.
        words: of nineteen of twenty texts no more; 0 where there is no text.
    """

    task: dict[str, Json]
    columns: dict[str, str] = field(default_factory=dict)
    why: str = ""
    notes: tuple[str, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
    words: int = 0


def guess(files: Sequence[File], task: str | None = None) -> Guess:
    """The task of rows in files.

    Args:
        task: what the person says it is; the columns are guessed.

    Raises:
        DataError: a file is broken, or it cannot be told what its rows are for.
    """
    first = files[0]
    if first.format in ("coco", "yolo"):
        return _given(task, "object-detection", Guess({"type": "object-detection"}, why=f"{first.format} annotations"))
    return guess_table(sample(first), first.path, task)


def sample(file: File) -> pa.Table:
    """Some of a file's rows."""
    if not file.members:
        return read_written(cut([file], SAMPLE)[0], {}).slice(0, SAMPLE)
    kind = "audio" if file.transcripts else "image"
    return read_written(cut([file], _MEMBERS)[0], {kind: Column((kind,))})


def guess_table(table: pa.Table, where: str, task: str | None = None) -> Guess:
    """As `guess`, of rows in memory."""
    columns = look_at_columns(table)
    for name, rule in _RULES.items():
        if task in (None, name):
            found = rule(columns)
            if found is not None:
                return found
    said = ", ".join(f"{seen.name} ({seen.about})" for seen in columns)
    what = f"for {task}" if task is not None else "what its rows are for"
    raise DataError(
        f"{where}: it cannot be told {what} from the columns {said}; say --task, or write a recipe with data.columns "
        f"(tasks: {', '.join(TASKS)})"
    )


def _given(task: str | None, name: str, found: Guess) -> Guess:
    if task not in (None, name):
        raise DataError(f"these rows are {found.why}, which is {name} and not {task}; leave --task out")
    return found


def _named(columns: dict[str, Seen]) -> dict[str, str]:
    return {role: seen.name for role, seen in columns.items() if seen.name != role}


def _pick(columns: Sequence[Seen], kind: str, role: str = "") -> Seen | None:
    """The column of a kind: the one called so, else the last."""
    left = [seen for seen in columns if kind in seen.kinds]
    called = (seen for name in _CALLED.get(role, ()) for seen in left if seen.name.lower() == name)
    return next(called, left[-1] if left else None)


# -------------------------------------------------------------------- each task's rule: a guess, or None


def _dialogues(columns: Sequence[Seen]) -> Guess | None:
    messages = _pick(columns, "messages")
    if messages is not None:
        told = {"type": "text-generation", "rows": "messages"}
        return Guess(told, _named({"messages": messages}), f"{messages.name!r} holds messages with roles")
    called = {seen.name.lower(): seen for seen in columns if "text" in seen.kinds}
    prompt = next((called[name] for name in _CALLED["prompt"] if name in called), None)
    completion = next((called[name] for name in _CALLED["completion"] if name in called), None)
    if prompt is not None and completion is not None and prompt is not completion:
        pair = {"prompt": prompt, "completion": completion}
        why = f"{prompt.name!r} and {completion.name!r} are what is asked and what is answered"
        return Guess({"type": "text-generation", "rows": "prompt"}, _named(pair), why, words=prompt.words)
    text = _pick(columns, "text", "text")
    if text is not None and len(columns) == 1:
        return Guess({"type": "text-generation", "rows": "text"}, _named({"text": text}), "there are texts alone")
    return None


def _questions(columns: Sequence[Seen]) -> Guess | None:
    called = {seen.name.lower(): seen for seen in columns}
    answers = _pick(columns, "answers") or called.get("answers") or called.get("answer")
    if answers is None or not {"question", "context"} <= set(called):
        return None
    picked = {"question": called["question"], "context": called["context"], "answers": answers}
    why = "there are questions, contexts and answers"
    return Guess({"type": "question-answering"}, _named(picked), why, words=called["context"].words)


def _tags(columns: Sequence[Seen]) -> Guess | None:
    lists = [seen for seen in columns if seen.lengths]
    pairs = [
        (words, tags)
        for words in lists
        for tags in lists
        if "words" in words.kinds and "tags" in tags.kinds and words.lengths == tags.lengths
        if len(tags.values) < len(words.values)
    ]
    if not pairs:
        return None
    words, tags = pairs[0]
    why = f"{words.name!r} and {tags.name!r} are lists of one length in each row"
    return Guess({"type": "token-classification"}, _named({"tokens": words, "tags": tags}), why, words=words.words)


def _pictures(columns: Sequence[Seen]) -> Guess | None:
    label, image = _label(columns), _pick(columns, "image")
    if image is None or label is None:
        return None
    return Guess(
        {"type": "image-classification"},
        _named({"image": image, "label": label}),
        f"{image.name!r} holds pictures and {label.name!r} {len(label.values)} labels",
        _doubts(label),
        label.values,
    )


def _masks(columns: Sequence[Seen]) -> Guess | None:
    images = [seen for seen in columns if "image" in seen.kinds]
    mask = next((seen for seen in images if seen.name.lower() in ("mask", "annotation", "segmentation")), None)
    image = next((seen for seen in images if seen is not mask), None)
    if mask is None or image is None:
        return None
    named = _named({"image": image, "mask": mask})
    return Guess(
        {"type": "image-segmentation"}, named, f"{mask.name!r} holds a mask for each picture of {image.name!r}"
    )


def _boxes(columns: Sequence[Seen]) -> Guess | None:
    image, boxes = _pick(columns, "image"), _pick(columns, "objects")
    if image is None or boxes is None:
        return None
    named = _named({"image": image, "objects": boxes})
    return Guess({"type": "object-detection"}, named, f"{boxes.name!r} holds boxes on the pictures of {image.name!r}")


def _speech(columns: Sequence[Seen]) -> Guess | None:
    audio, text = _pick(columns, "audio"), _pick(columns, "text", "text")
    if audio is None or text is None:
        return None
    why = f"{audio.name!r} holds sounds and {text.name!r} what is said in them"
    return Guess({"type": "automatic-speech-recognition"}, _named({"audio": audio, "text": text}), why)


def _histories(columns: Sequence[Seen]) -> Guess | None:
    items, following = _pick(columns, "items"), _pick(columns, "label", "next") or _pick(columns, "number", "next")
    if items is None or following is None or following.name.lower() not in _CALLED["next"]:
        return None
    named = _named({"items": items, "next": following})
    return Guess(
        {"type": "sequential-recommendation"}, named, f"{items.name!r} are what came before {following.name!r}"
    )


def _texts(columns: Sequence[Seen]) -> Guess | None:
    label = _label(columns) or _pick(columns, "labels", "label") or _pick(columns, "number", "score")
    texts = [seen for seen in columns if "text" in seen.kinds and seen is not label]
    if label is None or not texts:
        return None
    told: dict[str, Json] = {"type": "text-classification"}
    called = {seen.name.lower(): seen for seen in texts}
    pair = next(((called[a], called[b]) for a, b in _PAIRS if a in called and b in called), None)
    likeliest = max(texts, key=lambda seen: (seen.name.lower() in _CALLED["text"], seen.words))
    text = pair[0] if pair is not None else called.get("text", likeliest)
    roles = {"text": text, "label": label} | ({"text_pair": pair[1]} if pair is not None else {})
    notes = list(_doubts(label))
    if "labels" in label.kinds:
        told["problem_type"], what = "multi_label_classification", "lists of labels"
    elif "label" not in label.kinds:
        told["problem_type"], what = "regression", "numbers"
    else:
        what = f"{len(label.values)} labels"
        if label.values and min(label.values.values()) < _FEW * sum(label.values.values()):
            told["class_weights"] = "balanced"
    others = [seen.name for seen in texts if seen not in (text, pair and pair[1])]
    if others:
        notes.append(f"other texts are not read: {', '.join(others)}")
    where = f"{text.name!r}" if pair is None else f"{text.name!r} and {pair[1].name!r}"
    return Guess(
        told, _named(roles), f"{where} holds texts and {label.name!r} {what}", tuple(notes), label.values, text.words
    )


def _label(columns: Sequence[Seen]) -> Seen | None:
    return _pick(columns, "label", "label")


def _doubts(label: Seen) -> tuple[str, ...]:
    few = [name for name, count in label.values.items() if count < 2]
    return (f"labels with one row in the sample: {', '.join(few[:5])}",) if few else ()


_RULES: Mapping[str, Callable[[Sequence[Seen]], Guess | None]] = {
    "question-answering": _questions,
    "token-classification": _tags,
    "image-segmentation": _masks,
    "object-detection": _boxes,
    "image-classification": _pictures,
    "automatic-speech-recognition": _speech,
    "sequential-recommendation": _histories,
    "text-generation": _dialogues,
    "text-classification": _texts,
}
