"""A smaller BERT made of a larger one: some of its layers, and the pieces of its vocabulary that are used most.

    python -m pipelines.smaller_base [--out data]

makes, and a second run reuses, `data/minilm-small/`: three of MiniLM-L6's six layers, and 12,000 of its 30,522 pieces
beside single letters, into which rarer words fall apart. Nothing is trained: every number is the larger one's.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from ray_lora.bases.load import locate

LAYERS = (0, 1, 2)
PIECES = 12_000  # BERT's pieces are ordered by how often they were in its texts


def cut(model: str, folder: Path, layers: Sequence[int] = LAYERS, pieces: int = PIECES) -> Path:
    """The folder of the smaller base, made where it is not there yet or is another one.

    Args:
        model: a BERT with a fast tokenizer of WordPiece.
        layers: those of its layers that stay, from 0.
        pieces: the first so many of its vocabulary stay, and all single letters.
    """
    import torch
    from transformers import AutoModel

    path = locate(model)
    record = folder / "making.json"
    making = json.dumps({"of": str(path), "layers": list(layers), "pieces": pieces, "form": 1})
    if record.exists() and record.read_text() == making:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    told = json.loads((path / "tokenizer.json").read_text())
    kept = [
        (piece, number)
        for piece, number in sorted(told["model"]["vocab"].items(), key=lambda item: item[1])
        if number < pieces or len(piece.removeprefix("##")) == 1
    ]
    told["model"]["vocab"] = {piece: number for number, (piece, _) in enumerate(kept)}
    large = AutoModel.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    large.encoder.layer = torch.nn.ModuleList([large.encoder.layer[number] for number in layers])
    words = large.embeddings.word_embeddings
    rows = words.weight.detach()[[number for _, number in kept]]
    large.embeddings.word_embeddings = torch.nn.Embedding.from_pretrained(rows, padding_idx=words.padding_idx)
    large.config.num_hidden_layers, large.config.vocab_size = len(layers), len(kept)
    large.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(told, ensure_ascii=False))
    shutil.copy(path / "tokenizer_config.json", folder)
    record.write_text(making)
    return folder


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Make the smaller base")
    options.add_argument("--out", default="data", help="folder to write to")
    print(cut("minilm", Path(options.parse_args().out) / "minilm-small"))
