"""When each token of a text that Whisper wrote is heard: transformers' own dynamic time warping of what some heads of
its decoder looked at (`WhisperForConditionalGeneration._extract_token_timestamps`).

    token_times(base, 2, looked, samples=32_000, hop=160)      # [0.0, 0.34, ...], seconds, one a token

It knows weights of attention, no texts.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray_lora.bases.speech import Speech
from ray_lora.tasks.begun import Looked


def token_times(base: Speech, begun: int, looked: Looked, samples: int, hop: int) -> list[float]:
    """Seconds at which each token ends, as many as `looked.tokens`.

    Args:
        begun: tokens that the text began with.
        samples: of the sound, of whose places alone is looked at; at least one place.
        hop: samples from one frame to the next, two of which are a place of the encoder.
    """
    import torch
    from transformers.generation.utils import GenerateEncoderDecoderOutput
    from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

    heads = len(looked.weights)
    model: Any = SimpleNamespace(config=SimpleNamespace(decoder_layers=1, median_filter_width=base.smoothed))
    outputs = GenerateEncoderDecoderOutput(
        sequences=torch.zeros(1, 1, dtype=torch.long),  # type: ignore[arg-type]  # whose number of rows alone is asked
        cross_attentions=((looked.weights.cpu()[None],),),
    )
    times = WhisperGenerationMixin._extract_token_timestamps(
        model,
        outputs,
        [(0, head) for head in range(heads)],
        num_frames=torch.tensor([max(2, frames_of(samples, hop))]),
        num_input_ids=begun,
    )
    found: list[float] = times[0, begun : begun + len(looked.tokens)].tolist()
    return found


def frames_of(samples: int, hop: int) -> int:
    """Frames of the feature extractor that hold some of a sound."""
    return -(-samples // hop)
