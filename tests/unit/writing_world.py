"""A tiny language model with words and a chat template, adapters of it, and plain PEFT's greedy answers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = "the capital of Peru Mali Chad is Lima Bamako a river lake city old new . , who what where says yes no".split()
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '> ' + message['content'] + ' [END] ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def make_base(folder: Path, seed: int = 0, template: bool = True) -> Path:
    """A random Llama of 2 layers of width 32, and its tokenizer of whole words."""
    special = ["[UNK]", "[END]", "<system>", "<user>", "<assistant>"]
    vocabulary = {word: index for index, word in enumerate([*special, *(f" {word}" for word in WORDS), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    tokenizer.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        eos_token="[END]",
        pad_token="[END]",
        additional_special_tokens=special[2:],
        clean_up_tokenization_spaces=False,
        model_max_length=64,
    )
    if template:
        made.chat_template = TEMPLATE
    made.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            max_position_embeddings=64,
            eos_token_id=1,
            pad_token_id=1,
            bos_token_id=None,
        )
        model = LlamaForCausalLM(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0, parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path, seed: int, rank: int = 4, spread: float = 0.5) -> Path:
    """A LoRA folder as plain PEFT saves it, every tensor random, so that no two go on alike."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        config = LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules=["q_proj", "v_proj", "down_proj"])
        peft = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(0, spread)
        peft.save_pretrained(folder)
    return folder


class Alone:
    """Plain transformers with one adapter merged into the base, or none: the oracle."""

    def __init__(self, base: Path, adapter: Path | None) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(base)
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if adapter is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
        self.model = model.eval()

    def ids(self, prompt: str | Sequence[int], most: int) -> list[int]:
        """Greedy tokens after a prompt, by `generate`."""
        given = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt)
        with torch.inference_mode():
            found = self.model.generate(
                input_ids=torch.tensor([given]),
                attention_mask=torch.ones(1, len(given), dtype=torch.long),
                max_new_tokens=most,
                do_sample=False,
                pad_token_id=1,
            )
        return [int(token) for token in found[0, len(given) :]]

    def text(self, prompt: str, most: int) -> str:
        return str(self.tokenizer.decode(self.ids(prompt, most), skip_special_tokens=True))

    def chat(self, messages: Sequence[dict[str, str]], most: int) -> str:
        prompt = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return str(self.tokenizer.decode(self.ids(ids, most), skip_special_tokens=True))
