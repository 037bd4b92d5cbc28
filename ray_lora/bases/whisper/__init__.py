"""Whisper, a transformer that writes what a sound says: folders of transformers' made of other files, or with a shorter
window.

    shorten(Path("whisper-small"), Path("whisper-small-6s"), seconds=6)      # sounds of at most 6 seconds a pass
"""

from __future__ import annotations

from ray_lora.bases.whisper.folder import save_ctranslate2, shorten

__all__ = ["save_ctranslate2", "shorten"]
