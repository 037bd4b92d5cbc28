"""What the pipeline of one adapter for each person says of shops that are generated."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import rated_texts, shops
from pipelines.personal import interval


def test_shops_differ_by_their_bar_and_share_no_text_between_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rated_texts, "prepare", lambda out: None)
    for domain in shops.DOMAINS:
        for split, first in (("train", 0), ("test", 1000)):
            ratings = [at % 9 - 4.0 for at in range(60)]
            texts = [f"{domain} {first + at}" for at in range(60)]
            (tmp_path / domain).mkdir(exist_ok=True)
            pq.write_table(pa.table({"text": texts, "rating": ratings}), tmp_path / domain / f"{split}.parquet")
    folder = shops.write_rows(tmp_path, shops=12, rows=20, test=6)
    train, test = (pq.read_table(folder / f"{split}.parquet").to_pylist() for split in ("train", "test"))
    assert (len(train), len(test)) == (12 * 20, 12 * 6)
    assert not {row["text"] for row in train} & {row["text"] for row in test}
    assert {row["city"] for row in train if row["shop"] == "shop 5"} == {"b"}
    shares = {
        shop: sum(row["label"] == "positive" for row in train if row["shop"] == shop) / 20
        for shop in {row["shop"] for row in train}
    }
    assert max(shares.values()) - min(shares.values()) > 0.3


def test_the_interval_covers_the_mean_and_narrows_with_shops() -> None:
    few, many = interval([0.0, 0.1] * 5), interval([0.0, 0.1] * 500)
    assert few[0] < many[0] < 0.05 < many[1] < few[1]
    assert interval([0.2] * 7) == pytest.approx((0.2, 0.2))
