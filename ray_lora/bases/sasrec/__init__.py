"""SASRec (Kang and McAuley 2018, arXiv 1808.09781), which says what item comes next, in plain PyTorch and of our own.

    save_untrained(SasRecConfig(items=(12, 7, 31)), Path("bases/films"))      # a script trains it from here
    load_base(BaseSpec(model="bases/films"))

The vocabulary, which items there are, is a part of the folder. It knows no adapters and no tasks.
"""

from ray_lora.bases.sasrec.config import SasRecConfig
from ray_lora.bases.sasrec.folder import ARCHITECTURE, UNTIED, open_folder, save_folder, save_untrained
from ray_lora.bases.sasrec.items import Items
from ray_lora.bases.sasrec.network import SasRec, SasRecForNextItem, SasRecForNextItemUntied

__all__ = [
    "ARCHITECTURE",
    "UNTIED",
    "Items",
    "SasRec",
    "SasRecConfig",
    "SasRecForNextItem",
    "SasRecForNextItemUntied",
    "open_folder",
    "save_folder",
    "save_untrained",
]
