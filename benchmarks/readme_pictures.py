"""The README's pictures, made again: a search's table and plots, and the endpoint's page with an answer.

    python -m benchmarks.readme_pictures [--out docs/pictures] [--work build/readme_pictures]

It searches nine configurations on rated tweets, trains two adapters more beside their best, serves the three, and looks
at the page with the system's Chromium. Some minutes on two cores. What is shown is what came out, whatever it was.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.terminal_theme import MONOKAI

from pipelines.rated_texts import prepare
from ray_lora import Adapter, AppArgs, LoraTrainer, LoraTuner, Recipe, open_store
from ray_lora.search.report import leaderboard
from ray_lora.serving.cluster.app import run
from ray_lora.store import put_once

RECIPE = Path(__file__).parents[1] / "examples" / "tweets.yaml"
PLOTS = ("rank_by_rate", "learning_curves")
MOST = 150_000  # bytes of a picture
SPACE = (
    "search.space={lora.r: {grid_search: [2, 8, 32]}, training.learning_rate: {grid_search: [3.0e-4, 1.0e-3, 3.0e-3]}}"
)
TEXT = "so happy with my new phone\nmy flight is late again and nobody tells us why"
# Rich's own frame of a window, without the fonts that it would load from a host.
FRAME = """<svg class="{unique_id}" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    parser.add_argument("--work", type=Path, default=Path("build/readme_pictures"))
    given = parser.parse_args(argv)
    out: Path = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    given.work.mkdir(parents=True, exist_ok=True)
    os.chdir(given.work)
    prepare("data")
    for made in ("store", "runs"):  # a search that went on from an earlier one would show other seconds
        shutil.rmtree(made, ignore_errors=True)
    search(out)
    page(serve(), out / "page.png")
    for picture in sorted(out.iterdir()):
        size = picture.stat().st_size
        print(f"{picture} {size:,} bytes")
        assert size < MOST, f"{picture} is larger than {MOST:,} bytes"


def search(out: Path) -> None:
    """The table as it is printed, and the plots."""
    short = ["training.max_steps=48", "training.eval_steps=12", "tracking.uri=null", "training.learning_rate=1.0e-3"]
    tuner = LoraTuner(Recipe.load(RECIPE, [SPACE, *short]), quiet=True)
    tuner.fit()
    assert tuner.folder is not None
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(leaderboard(tuner.summary))
    title = "ray-lora search tweets.yaml: 48 steps of 16 tweets, one base"
    (out / "leaderboard.svg").write_text(
        console.export_svg(title=title, theme=MONOKAI, code_format=FRAME, unique_id="leaderboard")
    )
    for plot in PLOTS:
        small(Image.open(tuner.folder / f"{plot}.png"), out / f"{plot}.png")
    best = tuner.summary.best
    assert best is not None
    assert best.adapter is not None
    put_once(open_store("store"), Adapter.load(Path(best.adapter)), "tweets", aliases=("champion",))


def serve() -> str:
    """The address of an endpoint with the best adapter and two more."""
    recipes = [
        Recipe.load(
            RECIPE,
            [
                f"name={name}",
                f"data.train=data/{name}/train-1024.parquet",
                f"data.validation=data/{name}/validation-512.parquet",
                f"task.labels={labels}",
                "training.max_steps=32",
                "training.eval_steps=null",
                "training.learning_rate=3.0e-3",
                "tracking.uri=null",
            ],
        )
        for name, labels in (
            ("products", "[negative, positive]"),
            ("domains", "[movies, newspapers, products, tweets]"),
        )
    ]
    store = open_store("store")
    for recipe, result in zip(recipes, LoraTrainer(recipes, quiet=True).fit(), strict=True):
        put_once(store, Adapter.load(Path(result.checkpoint.path)), recipe.name)
    return run(AppArgs(store="store", port=0), block=False)


def page(address: str, file: Path) -> None:
    """The endpoint's page after a person has asked the best adapter."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])  # root in containers
        tab = browser.new_page(viewport={"width": 1100, "height": 760})
        tab.goto(address)
        tab.locator("#adapters").select_option("tweets")
        tab.get_by_label("Inputs, one in each line").fill(TEXT)
        tab.get_by_role("button", name="Predict").click()
        tab.get_by_role("table", name=f"Scores of {TEXT.splitlines()[-1]}").wait_for()
        shot = tab.screenshot(full_page=True)
        browser.close()
    small(Image.open(io.BytesIO(shot)), file)


def small(picture: Image.Image, file: Path) -> None:
    """A picture of at most 1200 pixels' width in 128 colours."""
    picture = picture.convert("RGB")
    picture.thumbnail((1200, 1600))
    picture.quantize(128, dither=Image.Dither.NONE).save(file, optimize=True)


if __name__ == "__main__":
    main()
