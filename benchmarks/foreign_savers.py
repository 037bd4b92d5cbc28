"""Adapters as other people's programs save them: each saver writes a folder, and beside it what plain PEFT answers.

    python -m benchmarks.foreign_savers FOLDER     # "PEFT", by whichever PEFT this process imports

It imports no part of the library, so that it runs with PEFT versions that the library does not.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
ANSWERS = "answers.safetensors"
IDS = torch.tensor([[5, 9, 3, 7, 11, 2], [8, 1, 4, 30, 22, 17]])
Make = Callable[[Path], Path]  # from an empty folder to the one that holds the adapter


def _base(kind: str, folder: Path) -> Path:
    """A tiny base of random weights in `folder/base`."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    common = {"vocab_size": 60, "pad_token_id": 0, "max_position_embeddings": 32, **sizes}
    config = transformers.BertConfig(**common) if kind == "bert" else transformers.LlamaConfig(**common)
    made = transformers.AutoModel if kind == "bert" else transformers.AutoModelForCausalLM
    made.from_config(config).save_pretrained(folder / "base")
    return folder / "base"


def classifier(folder: Path, **options: Any) -> Any:
    """A BERT with a new head of three outputs, in PEFT, every trained value random; its answers lie in the folder."""
    base = _base("bert", folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    asked = {"task_type": "SEQ_CLS", "r": 4, "lora_alpha": 6, "target_modules": ["query", "value"], **options}
    wrapped = _shaken(get_peft_model(model, LoraConfig(**asked)))
    _answer(folder, lambda row: wrapped(input_ids=row).logits)
    return wrapped


def writer(folder: Path, **options: Any) -> Any:
    """A Llama that writes text, in PEFT; its answers are the logits."""
    base = _base("llama", folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    asked = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], **options}
    wrapped = _shaken(get_peft_model(model, LoraConfig(**asked)))
    _answer(folder, lambda row: wrapped(input_ids=row).logits)
    return wrapped


def _shaken(model: Any) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.2)
    return model.eval()


def _answer(folder: Path, answer: Callable[[Tensor], Tensor]) -> None:
    with torch.no_grad():
        rows = {str(number): answer(row[None]).contiguous() for number, row in enumerate(IDS)}
    save_file(rows, folder / ANSWERS)


def rewritten(folder: Path, rename: Callable[[str], str], config: dict[str, Any] | None = None) -> Path:
    """The folder with its tensors' keys renamed, and more fields in its config."""
    tensors = load_file(folder / WEIGHTS)
    save_file({rename(key): tensor for key, tensor in tensors.items()}, folder / WEIGHTS)
    told = json.loads((folder / CONFIG).read_text()) | (config or {})
    (folder / CONFIG).write_text(json.dumps(told))
    return folder


def raw(model: Any, states: dict[str, Tensor], folder: Path) -> Path:
    """A script that saves what is trained under the names of a state dict."""
    peft: PeftModel = getattr(model, "_orig_mod", None) or getattr(model, "module", model)
    peft.peft_config["default"].save_pretrained(folder)
    kept = {key: value.contiguous() for key, value in states.items() if "lora_" in key or "classifier" in key}
    save_file({key: value.clone() for key, value in kept.items()}, folder / WEIGHTS)
    return folder


# ---------------------------------------------------------------- savers


def by_peft(folder: Path) -> Path:
    classifier(folder, rank_pattern={"layer.1.attention.self.query": 2}, use_rslora=True).save_pretrained(folder / "a")
    return folder / "a"


def _trained(folder: Path, steps: int) -> Path:
    model = classifier(folder)
    rows = [{"input_ids": row, "labels": 1} for row in IDS]
    asked = {"max_steps": steps, "save_steps": 1, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    arguments = transformers.TrainingArguments(output_dir=str(folder / "out"), **asked)
    transformers.Trainer(model, arguments, train_dataset=rows).train()
    model.eval()
    _answer(folder, lambda row: model(input_ids=row).logits)
    return folder / "out"


def by_trainer(folder: Path) -> Path:
    return _trained(folder, 1)


def by_trainer_twice(folder: Path) -> Path:
    return _trained(folder, 2)


def by_mixin(folder: Path) -> Path:
    """transformers' own `add_adapter`, without a PeftModel."""
    base = _base("bert", folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    asked = LoraConfig(r=4, lora_alpha=6, target_modules=["query", "value"], modules_to_save=["classifier"])
    asked.task_type = "SEQ_CLS"
    model.add_adapter(asked)
    _shaken(model)
    _answer(folder, lambda row: model(input_ids=row).logits)
    model.save_pretrained(folder / "a")
    return folder / "a"


def by_compiled(folder: Path) -> Path:
    torch.compile(classifier(folder)).save_pretrained(folder / "a")
    return folder / "a"


def by_compiled_raw(folder: Path) -> Path:
    model: Any = torch.compile(classifier(folder))
    return raw(model, model.state_dict(), folder / "a")


def by_compiled_state(folder: Path) -> Path:
    model: Any = torch.compile(classifier(folder))
    return raw(model, get_peft_model_state_dict(model), folder / "a")


def by_raw(folder: Path) -> Path:
    model = classifier(folder)
    return raw(model, model.state_dict(), folder / "a")


def by_ddp(folder: Path) -> Path:
    model = classifier(folder)
    with tempfile.TemporaryDirectory() as meeting:
        place = f"file://{meeting}/store"
        torch.distributed.init_process_group("gloo", init_method=place, rank=0, world_size=1)
        try:
            wrapped = torch.nn.parallel.DistributedDataParallel(model)
            return raw(wrapped, wrapped.state_dict(), folder / "a")
        finally:
            torch.distributed.destroy_process_group()


def by_fsdp(folder: Path) -> Path:
    def wrapped(key: str) -> str:
        layer = key.replace(".layer.0.", ".layer.0._fsdp_wrapped_module.").replace(
            ".layer.1.", ".layer.1._fsdp_wrapped_module."
        )
        return f"_fsdp_wrapped_module.{layer}"

    return rewritten(by_peft(folder), wrapped)


def by_zero3(folder: Path) -> Path:
    saved = by_peft(folder)
    tensors = {key: torch.zeros(0) if ".lora_" in key else tensor for key, tensor in load_file(saved / WEIGHTS).items()}
    save_file(tensors, saved / WEIGHTS)
    return saved


def by_two(folder: Path) -> Path:
    model = classifier(folder)
    again = {key.replace(".default.", ".other."): value for key, value in model.state_dict().items()}
    return raw(model, model.state_dict() | again, folder / "a")


def by_llama_factory(folder: Path) -> Path:
    saved = folder / "saves" / "checkpoint-500"
    writer(folder).save_pretrained(saved)
    (saved / "trainer_state.json").write_text("{}")
    return folder / "saves"


def by_llama_factory_pissa(folder: Path) -> Path:
    return rewritten(by_llama_factory(folder) / "checkpoint-500", str, {"init_lora_weights": "pissa_niter_16"})


def by_axolotl(folder: Path) -> Path:
    saved = folder / "lora-out"
    writer(folder, modules_to_save=None).save_pretrained(saved)
    return rewritten(saved, lambda key: f"_orig_mod.{key}", {"peft_layers_to_transform": None, "loftq_config": {}})


def by_axolotl_tokens(folder: Path) -> Path:
    writer(folder, modules_to_save=["embed_tokens", "lm_head"]).save_pretrained(folder / "lora-out")
    return folder / "lora-out"


def by_swift(folder: Path) -> Path:
    saved = folder / "checkpoint-100"
    writer(folder).save_pretrained(saved)
    extra = {"lora_dtype": None, "lorap_lr_ratio": 16.0, "lorap_emb_lr": 1e-06}
    (saved / "additional_config.json").write_text(json.dumps(extra))
    return rewritten(saved, str, extra | {"model_key_mapping": None})


def by_unsloth(folder: Path) -> Path:
    saved = folder / "lora_model"
    writer(folder).save_pretrained(saved)
    noted = {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama.modeling_llama"}
    return rewritten(
        saved,
        str,
        {
            "auto_mapping": noted | {"unsloth_fixed": True},
            "base_model_name_or_path": "unsloth/tinyllama-bnb-4bit",
        },
    )


SAVERS: dict[str, tuple[str, Make]] = {
    "transformers' Trainer": ("its output folder with one checkpoint", by_trainer),
    "transformers' Trainer, twice": ("its output folder with two checkpoints", by_trainer_twice),
    "transformers' add_adapter": ("`model.save_pretrained` without a PeftModel", by_mixin),
    "a state dict": ("`.default.`, `modules_to_save.default.` and `original_module.` in the keys", by_raw),
    "torch.compile": ("`save_pretrained` of the compiled model", by_compiled),
    "torch.compile, state dict": ("`_orig_mod.` before every key", by_compiled_raw),
    "torch.compile, PEFT's state dict": ("`get_peft_model_state_dict` of the compiled model", by_compiled_state),
    "DistributedDataParallel": ("`module.` before every key (gloo, one process)", by_ddp),
    "FSDP": ("`_fsdp_wrapped_module.` in the keys (by its way of naming)", by_fsdp),
    "DeepSpeed ZeRO-3": ("shards that were not gathered (by its way of saving)", by_zero3),
    "two adapters": ("one file, `.default.` and `.other.`", by_two),
    "LLaMA-Factory": ("a checkpoint below `saves/` (by its way of naming)", by_llama_factory),
    "LLaMA-Factory, PiSSA": ("`pissa_init`, not converted (by its way of naming)", by_llama_factory_pissa),
    "Axolotl": ("compiled, fields of its own (by its way of naming)", by_axolotl),
    "Axolotl, new tokens": ("`lora_modules_to_save: [embed_tokens, lm_head]`", by_axolotl_tokens),
    "ms-swift": ("LoRA+'s fields in the config (by its way of naming)", by_swift),
    "Unsloth": ("a quantised base's name (by its way of naming)", by_unsloth),
}


def main() -> None:
    """PEFT's own saver."""
    from peft import __version__

    warnings.simplefilter("ignore")
    by_peft(Path(sys.argv[1]))
    sys.stdout.write(f"PEFT {__version__}\n")


if __name__ == "__main__":
    main()
