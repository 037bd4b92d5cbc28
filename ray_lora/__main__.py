"""`python -m ray_lora` is `ray-lora`."""

import sys

from ray_lora.cli import main

sys.exit(main())
