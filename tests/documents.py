"""The documents' python blocks, and a folder in which they run: the paths they name, on a tiny base."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.conftest import rated

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


def blocks(page: Path) -> list[str]:
    """The page's python blocks, without those marked `notest`."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)


def furnish(folder: Path, base: Path) -> None:
    """`examples/tweets.yaml` on the tiny base, and the rows it names."""
    recipe = yaml.safe_load((ROOT / "examples" / "tweets.yaml").read_text())
    recipe["base"] = {"model": str(base), "dtype": "float32"}
    recipe["tracking"] = {"uri": None}
    (folder / "examples").mkdir()
    (folder / "examples" / "tweets.yaml").write_text(yaml.safe_dump(recipe))
    for seed, split in enumerate(("train", "validation")):
        path = Path(recipe["data"][split])
        assert not path.is_absolute()
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rated(48, seed)), folder / path)


def run_blocks(page: Path) -> None:
    """Run a page's blocks one after the other, as a reader would type them; line numbers are the page's."""
    text = page.read_text()
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        line = text[: text.index(block)].count("\n")
        exec(compile("\n" * line + block, str(page), "exec"), names)
