"""Emoji as two sets draw them, as parquet: Noto's and Twemoji's pictures of the same things.

    python -m pipelines.drawings [--out data]

Noto's are drawn by Pillow from the font of Debian's `fonts-noto-color-emoji` 2.042 (OFL-1.1), which `apt-get download`
fetches where it is not installed.
Twemoji's are those of npm `emoji-datasource-twitter` 16.0.0 (pictures CC-BY-4.0, by Twitter and others; code MIT),
which also says what each shows. Both stand on white, 96 x 96 pixels. An emoji is in the same split in both sets: a hash
of its code points says which.

    data/drawings-noto/{train,validation,test}.parquet   data/drawings-twemoji/{train,validation,test}.parquet

    {"image": b"<PNG bytes>", "label": "food"}
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from pipelines.kept_rows import by_group, digest, keep, sha256
from ray_lora.bases.packaged import Archive, cache_folder, fetch_archive, kept
from ray_lora.errors import DataError

SOURCE = Archive(
    "npm",
    "emoji-datasource-twitter",
    "16.0.0",
    "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    62,
)
PACKAGE, FONT = "fonts-noto-color-emoji", Path("usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_SHA256 = "e5899ed38b8ed83e08bd3ac5de09791e9d19d288333a796de1d35ad17396f1ec"  # of 2.042
LABELS = {
    "Animals & Nature": "animal",
    "Food & Drink": "food",
    "Travel & Places": "travel",
    "Smileys & Emotion": "face",
}
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
SIDE = 96
_STRIKE = 109  # the size of the font's bitmaps
_ORDER = 7  # mixes the rows


def prepare(out: str | Path = "data") -> None:
    """Make the files if they are missing or of another making; DataError when font or archive cannot be had."""
    making = {"source": SOURCE.sha256, "font": FONT_SHA256, "labels": LABELS, "shares": SHARES, "side": SIDE, "form": 1}
    keep(out, "drawings", making, files)


def font() -> Path:
    """Noto's font, the installed one or fetched once."""
    installed = "/" / FONT
    if installed.is_file() and sha256(installed) == FONT_SHA256:
        return installed
    return kept(cache_folder() / f"noto-{FONT_SHA256[:12]}", (FONT.name,), _fetch) / FONT.name


def _fetch(into: Path) -> None:
    """apt downloads the package as the machine's sources have it; what counts is the font's own hash."""
    sys.stderr.write(f"ray_lora: fetching {PACKAGE} with apt-get (once, 10 MB) ...\n")
    into.mkdir()
    try:
        for command in (["apt-get", "download", PACKAGE], ["dpkg-deb", "-x", "*.deb", "unpacked"]):
            told = [str(next(into.glob(word))) if "*" in word else word for word in command]
            subprocess.run(told, cwd=into, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError, StopIteration) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise DataError(f"{PACKAGE} cannot be downloaded ({said.strip()[-200:]}); apt-get install {PACKAGE}") from None
    found = into / "unpacked" / FONT
    if not found.is_file() or sha256(found) != FONT_SHA256:
        raise DataError(f"{PACKAGE} of this machine's sources is not 2.042, whose font has the sha256 {FONT_SHA256}")
    found.rename(into / FONT.name)


def files() -> dict[str, list[dict[str, Any]]]:
    """Rows by file."""
    folder = fetch_archive(SOURCE, "package")
    known = [one for one in json.loads((folder / "emoji.json").read_text()) if _is_drawn(one)]
    known.sort(key=lambda one: digest(f"{_ORDER} {one['unified']}"))
    splits = by_group([one["unified"] for one in known], SHARES)
    letters = ImageFont.truetype(str(font()), _STRIKE)
    found: dict[str, list[dict[str, Any]]] = {}
    for one, split in zip(known, splits, strict=True):
        noto = _noto(chr(int(one["unified"], 16)), letters)
        if noto is None:
            continue  # newer than the font
        twemoji = Image.open(folder / "img" / "twitter" / "64" / one["image"]).convert("RGBA")
        for name, picture in (("noto", noto), ("twemoji", twemoji)):
            row = {"image": _png(_on_white(picture)), "label": LABELS[one["category"]]}
            found.setdefault(f"drawings-{name}/{split}.parquet", []).append(row)
    return found


def _is_drawn(one: dict[str, Any]) -> bool:
    """Whether it is a single code point of these classes that Twemoji has."""
    return one["category"] in LABELS and "-" not in one["unified"] and bool(one.get("has_img_twitter"))


def _noto(letter: str, letters: ImageFont.FreeTypeFont) -> Image.Image | None:
    picture = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(picture).text((10, 10), letter, font=letters, embedded_color=True)
    box = picture.getbbox()
    bands = [] if box is None else picture.crop(box).split()[:3]
    coloured = any(low != high for low, high in (band.getextrema() for band in bands))
    return picture.crop(box) if coloured else None


def _on_white(picture: Image.Image) -> Image.Image:
    """A picture in the middle of a white square, by its alpha."""
    side = max(picture.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--out", default="data", help="folder to write to")
    prepare(options.parse_args().out)
