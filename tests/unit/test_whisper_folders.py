"""Folders of Whisper: made of CTranslate2's file number for number, and with a shorter window."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from ray_lora.bases.whisper import folder as module
from ray_lora.bases.whisper import save_ctranslate2, shorten
from ray_lora.bases.whisper.ctranslate2 import read_model
from ray_lora.errors import BaseModelError
from ray_lora.tasks import build_task
from ray_lora.tasks.speech.options import SpeechRecognitionSpec
from tests.unit.bases import open_base
from tests.unit.speech import letters, plain, rows, save_whisper


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_whisper(tmp_path_factory.mktemp("speech") / "whisper")


def test_a_shorter_window_is_another_base_that_hears_the_same(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="a window of 1 seconds is not shorter than the base's of 1"):
        shorten(folder, tmp_path / "none", 1)
    wide = save_whisper(tmp_path / "wide", seconds=3)
    shorten(wide, tmp_path / "short", 1)
    long, short = open_base(wide), open_base(tmp_path / "short")
    assert (long.processor.speech.seconds, short.processor.speech.seconds) == (3, 1)
    assert long.processor.speech.precision == short.processor.speech.precision == 0.02
    assert long.fingerprint != short.fingerprint
    name = "encoder.embed_positions.weight"
    for key, tensor in short.backbone.state_dict().items():
        assert torch.equal(
            tensor, long.backbone.state_dict()[key][:50] if key == name else long.backbone.state_dict()[key]
        )
    task = build_task(SpeechRecognitionSpec(), short.processor)
    inputs = task.collate(task.encode(rows(2)))
    assert inputs["input_features"].shape == (2, 20, 100)
    with torch.no_grad():
        assert torch.equal(short.backbone(**inputs).last_hidden_state, plain(tmp_path / "short").model(**inputs)[0])


def as_ctranslate2(model: Any, path: Path) -> None:
    """A Whisper written as CTranslate2 writes it: fused projections, keys with a bias of zeros."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items() if name != "proj_out.weight"}
    out: dict[str, Any] = {f"{side}/num_heads": np.array(4, np.int16) for side in ("encoder", "decoder")}

    def norm(ours: str, theirs: str) -> None:
        out[f"{theirs}/gamma"], out[f"{theirs}/beta"] = state[f"{ours}.weight"], state[f"{ours}.bias"]

    def fused(ours: str, names: Sequence[str], theirs: str) -> None:
        zeros = np.zeros(32, np.float32)
        out[f"{theirs}/weight"] = np.concatenate([state[f"{ours}.{name}.weight"] for name in names])
        out[f"{theirs}/bias"] = np.concatenate([state.get(f"{ours}.{name}.bias", zeros) for name in names])

    for side in ("encoder", "decoder"):
        out[f"{side}/position_encodings/encodings"] = state[f"model.{side}.embed_positions.weight"]
        norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        for layer in range(2):
            ours, theirs = f"model.{side}.layers.{layer}", f"{side}/layer_{layer}"
            norm(f"{ours}.self_attn_layer_norm", f"{theirs}/self_attention/layer_norm")
            norm(f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm")
            fused(f"{ours}.self_attn", ("q_proj", "k_proj", "v_proj"), f"{theirs}/self_attention/linear_0")
            fused(f"{ours}.self_attn", ("out_proj",), f"{theirs}/self_attention/linear_1")
            fused(ours, ("fc1",), f"{theirs}/ffn/linear_0")
            fused(ours, ("fc2",), f"{theirs}/ffn/linear_1")
            if side == "decoder":
                norm(f"{ours}.encoder_attn_layer_norm", f"{theirs}/attention/layer_norm")
                fused(f"{ours}.encoder_attn", ("q_proj",), f"{theirs}/attention/linear_0")
                fused(f"{ours}.encoder_attn", ("k_proj", "v_proj"), f"{theirs}/attention/linear_1")
                fused(f"{ours}.encoder_attn", ("out_proj",), f"{theirs}/attention/linear_2")
    out["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"]
    for name in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            out[f"encoder/{name}/{part}"] = state[f"model.encoder.{name}.{part}"]
    kinds = {np.dtype(np.float32): 0, np.dtype(np.int16): 2}
    with path.open("wb") as file:

        def word(text: str) -> None:
            file.write(struct.pack("<H", len(text) + 1) + text.encode() + b"\0")

        file.write(struct.pack("<I", 6))
        word("WhisperSpec")
        file.write(struct.pack("<II", 3, len(out)))
        for name, value in out.items():
            word(name)
            file.write(struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape))
            file.write(struct.pack("<BI", kinds[value.dtype], value.nbytes) + value.tobytes())


def test_a_tokenizer_is_given_its_timestamps(tmp_path: Path) -> None:
    words = ["endoftext", "startoftranscript", "startofprev", "notimestamps"]
    letters(words).save(str(tmp_path / "tokenizer.json"))
    module._tokenizer(tmp_path / "tokenizer.json").save_pretrained(tmp_path / "saved")
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert len(read) == 256 + len(words) + 1501
    assert read.all_special_ids[-1] == read.convert_tokens_to_ids("<|notimestamps|>") == 259
    assert read.decode([260, 361, 256], decode_with_timestamps=True) == "<|0.00|><|2.02|><|endoftext|>"


def test_ctranslate2s_file_is_read_number_for_number(folder: Path, tmp_path: Path) -> None:
    as_ctranslate2(plain(folder), tmp_path / "model.bin")
    (tmp_path / "config.json").write_text(
        '{"suppress_ids": [3], "suppress_ids_begin": [5], "alignment_heads": [[0, 0]]}'
    )
    read = transformers.WhisperTokenizer.from_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_tokenizer", lambda _: read)
        save_ctranslate2(tmp_path, tmp_path / "out")
    there, here = plain(folder).state_dict(), plain(tmp_path / "out").state_dict()
    assert there.keys() == here.keys()
    assert all(torch.equal(there[name], here[name]) for name in there)
    whole = (tmp_path / "model.bin").read_bytes()
    for broken, said in ((whole[: len(whole) // 2], "broken"), (b"\5" + whole[1:], "version 6"), (b"", "broken")):
        (tmp_path / "broken.bin").write_bytes(broken)
        with pytest.raises(BaseModelError, match=said):
            read_model(tmp_path / "broken.bin")
