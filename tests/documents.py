"""The documents' python blocks, and a folder in which they run: the paths they name, on a tiny base."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ray_lora.adapters.adapter import Card
from ray_lora.bases.load import load_base
from ray_lora.engine import AdapterEngine, HeadSpec
from ray_lora.recipe import BaseSpec, LoraSpec
from ray_lora.store import open_store
from ray_lora.tasks.text_classification import TextClassificationSpec
from tests.conftest import rated

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


def blocks(page: Path, language: str = "python") -> list[str]:
    """The page's blocks of one language, without those marked `notest`."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


def furnish(folder: Path, base: Path) -> None:
    """`examples/tweets.yaml` on the tiny base and the rows it names; `store/` with two versions of `tweets`.

    Of detectors and segmenters the recipe alone: their pages make their own bases and rows.
    """
    recipe = yaml.safe_load((ROOT / "examples" / "tweets.yaml").read_text())
    recipe["base"] = {"model": str(base), "dtype": "float32"}
    recipe["tracking"] = {"uri": None}
    (folder / "examples").mkdir()
    (folder / "examples" / "tweets.yaml").write_text(yaml.safe_dump(recipe))
    for page in ("detection.yaml", "recommendation.yaml", "segmentation.yaml"):
        (folder / "examples" / page).write_text((ROOT / "examples" / page).read_text())
    for seed, split in enumerate(("train", "validation")):
        path = Path(recipe["data"][split])
        assert not path.is_absolute()
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rated(48, seed)), folder / path)
    engine = AdapterEngine(load_base(BaseSpec(model=str(base), dtype="float32")), slots=2, max_rank=4)
    for seed in range(2):
        slot = engine.init(LoraSpec(r=4), HeadSpec("AutoModelForSequenceClassification", 2), seed, peft_type="SEQ_CLS")
        card = Card(task=TextClassificationSpec(labels=("negative", "positive")), base=str(base))
        open_store(str(folder / "store")).put(engine.export(slot, card), "tweets", ["champion"][seed:])
    engine.close()


def run_blocks(page: Path) -> None:
    """Run a page's blocks one after the other, as a reader would type them; line numbers are the page's.

    A block that begins with a file's name, `# ratings.py`, is written to that file.
    """
    text = page.read_text()
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        file = re.match(r"# (\w+\.py)\n", block)
        if file:
            Path(file.group(1)).write_text(block)
            continue
        line = text[: text.index(block)].count("\n")
        exec(compile("\n" * line + block, str(page), "exec"), names)
