"""Rows as parquet files: made once, the same bytes every time, and nothing of one split in another.

    keep("data", "tagged_tweets", making, make)     # writes what `make` gives, unless it is there

It knows nothing of tasks: what a row is, and which rows belong together, its callers say.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.feature_extraction.text import CountVectorizer

from ray_lora.atomic import write_atomic

ALIKE = 0.7  # share of common words (Jaccard) from which two texts are copies of each other with a word changed
Rows = Sequence[Mapping[str, Any]]


def keep(out: str | Path, name: str, making: Mapping[str, Any], make: Callable[[], Mapping[str, Rows]]) -> None:
    """Write the files that `make` gives below `out`, if any is missing, changed or of another making.

    Args:
        name: of the record that says what was made: `out/NAME.json`.
        making: whatever the rows follow from, as JSON; another value makes them anew.
        make: "folder/split.parquet" -> its rows.
    """
    out = Path(out)
    record = out / f"{name}.json"
    known = json.loads(record.read_text()) if record.exists() else {}
    if known.get("making") == making and all(sha256(out / file) == sha for file, sha in known["sha256"].items()):
        return
    files = make()
    hashes = {
        file: write(out / file, pa.Table.from_pylist([dict(row) for row in rows])) for file, rows in files.items()
    }
    write_atomic(record, json.dumps({"making": making, "sha256": hashes}, indent=1))
    print(f"{name}: " + ", ".join(f"{len(rows):,} rows in {out / file}" for file, rows in files.items()))


def by_group(groups: Sequence[str], shares: Mapping[str, float]) -> list[str]:
    """For each row the split that its group is in: a hash of the group's name, so it hangs on nothing else."""
    bounds, names = np.cumsum(list(shares.values())), list(shares)
    places = (int(digest(group)[:12], 16) / 16**12 for group in groups)
    return [names[min(int(np.searchsorted(bounds, place, side="right")), len(names) - 1)] for place in places]


def joined(texts: Sequence[str], documents: Sequence[Hashable]) -> list[int]:
    """For each text the number of its group: connected by a shared document or by sharing most of their words."""
    first: dict[Hashable, int] = {}
    edges = [(row, first.setdefault(document, row)) for row, document in enumerate(documents)]
    edges += alike(texts)
    ends = np.array(edges).T
    graph = coo_matrix((np.ones(len(edges)), (ends[0], ends[1])), shape=(len(texts), len(texts)))
    return [int(group) for group in connected_components(graph, directed=False)[1]]


def split_texts(texts: Sequence[str], shares: Mapping[str, float]) -> list[str]:
    """For each text its split; texts that share most of their words are in one."""
    groups = joined(texts, [" ".join(text.casefold().split()) for text in texts])
    names: dict[int, str] = {}
    for group, text in zip(groups, texts, strict=True):
        names[group] = min(names.get(group, text), text)
    return by_group([names[group] for group in groups], shares)


def alike(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of texts whose sets of words have a Jaccard index of at least `ALIKE`.

    Such a pair shares a word among the rarest 1 - ALIKE of each, so only texts that do are compared (the prefix filter
    of Chaudhuri, Ganti and Kaushik 2006).
    """
    words = CountVectorizer(binary=True, token_pattern=r"\w+", dtype=np.float32).fit_transform(texts)
    words = words[:, np.argsort(np.asarray(words.sum(axis=0)).ravel(), kind="stable")]
    words.sort_indices()  # rarest first
    sizes = np.diff(words.indptr)
    rare = words.copy()
    rare.data = (
        np.arange(words.nnz) - np.repeat(words.indptr[:-1], sizes) <= np.repeat((1 - ALIKE) * sizes, sizes) + 1e-6
    )
    rare.eliminate_zeros()
    one, other = (rare.astype(np.float32) @ rare.T.astype(np.float32)).nonzero()
    one, other = one[one < other], other[one < other]
    common = np.asarray(words[one].multiply(words[other]).sum(axis=1)).ravel()
    same = common >= ALIKE * (sizes[one] + sizes[other] - common) - 1e-6
    return list(zip(one[same].tolist(), other[same].tolist(), strict=True))


def mixed(rows: Sequence[Any], key: Callable[[Any], str]) -> list[Any]:
    """Rows in an order that hangs on nothing but their keys."""
    return sorted(rows, key=lambda row: digest(key(row)))


def balanced(rows: Sequence[Any], label: Callable[[Any], Hashable], total: int | None = None) -> list[Any]:
    """The first rows of every label, as many of each: `total` in all, or as many as the rarest has."""
    counts = Counter(map(label, rows))
    each = min(counts.values()) if total is None else total // len(counts)
    taken: Counter[Hashable] = Counter()
    chosen = []
    for row in rows:
        if taken[label(row)] < each:
            taken[label(row)] += 1
            chosen.append(row)
    return chosen


def write(path: Path, table: pa.Table) -> str:
    """Write a parquet file; its sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_atomic(path, buffer.getvalue())
    return sha256(path)


def digest(text: str) -> str:
    """A text's sha256, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256(path: Path) -> str:
    """A file's sha256; empty where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
