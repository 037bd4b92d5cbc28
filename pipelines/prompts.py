"""What telephone systems say, recorded: Asterisk's prompts in Italian and in Mexican Spanish, as parquet.

    python -m pipelines.prompts [--out data]

They are a download whose terms are said before it: `TERMS`. Debian's `asterisk-core-sounds-it(-wav)` and
`asterisk-core-sounds-es(-wav)` 1.6.1-1 hold them, which `apt-get download` fetches; nothing is installed. A row is a
prompt of half a second to six, one voice a language, 8,000 samples a second. Prompts that share most of their words are
in one split. Some texts lost their accents on the way; those that lost them to a question mark are left out.

    data/prompts-it/{train,validation,test}.parquet   data/prompts-es/{train,validation,test}.parquet

    {"audio": b"<WAV bytes>", "text": "Tutti i circuiti sono ora occupati."}
"""

from __future__ import annotations

import argparse
import gzip
import io
import re
import subprocess
import sys
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.kept_rows import keep, mixed, sha256, split_texts
from ray_lora.bases.packaged import cache_folder, kept
from ray_lora.errors import DataError

TERMS = """Asterisk's Italian prompts are by Carlo Flora (www.carloflora.com), translated by Silvia Petrin, CC-BY-3.0;
the Spanish ones by Allison Smith (www.theivrvoice.com) for Digium, CC-BY-SA-3.0. They are not under this project's
licence: whoever shows or passes them on names the speakers, and shares changed Spanish ones alike."""
VERSION = "1.6.1-1"
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
SECONDS = (0.5, 5.9)  # of a prompt that is taken
_LOST = re.compile(r"\?\s*\w")  # a letter with an accent that became a question mark
_NOISE = re.compile(r"[\[\]<>()]|^(un suono|a )", re.IGNORECASE)  # what is heard is described, not said


@dataclass(frozen=True)
class Voice:
    """One language's prompts: their folder, and the sha256 of the packages of sounds and of texts."""

    folder: str
    sounds: str
    texts: str


VOICES = {
    "it": Voice(
        "it_IT_m_Carlo",
        "5a26638089e134b8ac39363fe249c5c93c50cd8bfdc9b2499ae61ec4a35e2fcb",
        "3884d9457e12f21caa018c18f0d587df5d53ebea14b673d8453a134c5941ab3b",
    ),
    "es": Voice(
        "es_MX_f_Allison",
        "9283a09a6d56fccdcc2bcfe86c48f0f844289cfbd46a3184d8785a6f7f569903",
        "9afdab7f559f036649fb406e625899306ca1004df8ebe39c30bfbd5912d66f74",
    ),
}


def prepare(out: str | Path = "data") -> None:
    """Make the files if they are missing or of another making; DataError when the packages cannot be had."""
    print(TERMS)
    voices = {language: [voice.sounds, voice.texts] for language, voice in VOICES.items()}
    keep(out, "prompts", {"voices": voices, "shares": SHARES, "seconds": list(SECONDS), "form": 1}, files)


def files() -> dict[str, list[dict[str, Any]]]:
    """Rows by file."""
    found: dict[str, list[dict[str, Any]]] = {}
    for language in VOICES:
        rows = mixed(list(read(language)), lambda row: str(row["text"]))
        splits = split_texts([row["text"] for row in rows], SHARES)
        for row, split in zip(rows, splits, strict=True):
            found.setdefault(f"prompts-{language}/{split}.parquet", []).append(row)
    return found


def read(language: str) -> Iterator[dict[str, Any]]:
    """Each prompt of a language that is words and has a fitting length."""
    folder = fetch(language)
    for line in gzip.decompress((folder / "texts.gz").read_bytes()).decode("utf-8-sig", "replace").splitlines():
        name, told, text = line.partition(":")
        path = folder / "sounds" / f"{name.strip()}.wav"
        text = " ".join(text.split())
        if line.startswith(";") or not told or _LOST.search(text) or _NOISE.search(text) or "�" in text:
            continue
        if any(sign.isalpha() for sign in text) and path.is_file():
            data = path.read_bytes()
            with wave.open(io.BytesIO(data)) as sound:
                seconds = sound.getnframes() / sound.getframerate()
            if SECONDS[0] <= seconds <= SECONDS[1]:
                yield {"audio": data, "text": text}


def fetch(language: str) -> Path:
    """A folder of a language's `sounds` and `texts.gz`, fetched once."""
    voice = VOICES[language]
    target = cache_folder() / f"asterisk-core-sounds-{language}-{VERSION}-{voice.sounds[:12]}"
    return kept(target, ("texts.gz", "sounds/hello-world.wav"), lambda into: _fetch(language, voice, into))


def _fetch(language: str, voice: Voice, into: Path) -> None:
    """apt downloads what the machine's sources have; what counts are the packages' hashes."""
    name = f"asterisk-core-sounds-{language}"
    sys.stderr.write(f"ray_lora: fetching {name} with apt-get (once, 20 MB) ...\n")
    into.mkdir()
    try:
        for package, expected in ((f"{name}-wav", voice.sounds), (name, voice.texts)):
            _run(into, "apt-get", "download", f"{package}={VERSION}")
            [archive] = into.glob(f"{package}_*.deb")
            if sha256(archive) != expected:
                raise DataError(f"{package} is not the pinned file: its sha256 is {sha256(archive)}, not {expected}")
            _run(into, "dpkg-deb", "-x", archive.name, "unpacked")
            archive.unlink()
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise DataError(f"{name} {VERSION} cannot be downloaded ({said.strip()[-200:]}); it is Debian's") from None
    share = into / "unpacked/usr/share"
    (share / f"doc/{name}/core-sounds-{language}.txt.gz").rename(into / "texts.gz")
    (share / "asterisk/sounds" / voice.folder).rename(into / "sounds")


def _run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--out", default="data", help="folder to write to")
    prepare(options.parse_args().out)
