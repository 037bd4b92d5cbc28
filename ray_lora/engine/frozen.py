"""Convolutions and norms of a frozen backbone, rewritten so that a pass costs less and its gradients are right.

A batch norm that has its statistics is y = x * scale + shift, and where a convolution's output goes to such a norm and
nowhere else, scale and shift are a part of the convolution. Which outputs those are is read off the graph that autograd
draws of the class, run without numbers. On processors, channels lie innermost in memory, as convolutions there like it.
It knows modules, not slots.

The norms are rewritten for their gradients too: of one row, torch's kernel (2.13, on processors) misreads gradients
that lie transposed, and gives wrong ones without a word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from ray_lora.bases.few_bits.convolutions import HeldConvolution, is_plain
from ray_lora.bases.few_bits.layers import Held
from ray_lora.bases.geometry import CONVOLUTIONS, Geometry, towards

_EXACT = (torch.float32, torch.float64)  # whose weights are multiplied by a norm's scale without a loss that counts
_INNERMOST = (torch.float32, torch.bfloat16)


class Frozen:
    """The rewritten modules of one backbone; `undo` gives them their own ways back.

    Attributes:
        after: by what the norm folded into a convolution multiplies each channel, [out], by the convolution's name.
        innermost: whether inputs of pictures are laid with their channels innermost.
    """

    def __init__(self, backbone: nn.Module, row: Callable[[], Mapping[str, Tensor] | None], folds: bool = True) -> None:
        """
        Args:
            row: gives the backbone's inputs of one row; None where there are none, and nothing is folded.
            folds: whether norms become a part of the convolutions before them.
        """
        self.after: dict[str, Tensor] = {}
        self._undo: list[Callable[[], None]] = []
        plain = {name: module for name, module in backbone.named_modules() if has_statistics(module)}
        convolutions = {name: module for name, module in backbone.named_modules() if is_plain(module)}
        device, dtype = _where(backbone)
        many = sum(isinstance(module, nn.Conv2d) for module in convolutions.values()) > 1
        self.innermost = False
        pairs: dict[str, str] = {}
        looked = device.type != "meta" and (many or (plain and convolutions))
        inputs = row() if looked else None
        if inputs is not None:
            pairs = _pairs(backbone, inputs, convolutions, plain)
            laid = device.type == "cpu" and dtype in _INNERMOST and many
            self.innermost = laid and _takes_innermost(backbone, inputs)
        if folds and dtype in _EXACT:
            for name, norm in pairs.items():
                self._fold(name, convolutions[name], plain.pop(norm))
        for norm in plain.values():
            self._set(norm, _affine(norm))
        for module in backbone.modules():
            if isinstance(module, _NormBase) and not has_statistics(module):
                self._undo.append(module.register_forward_hook(_guard).remove)
        if self.innermost:
            for name, module in convolutions.items():
                if isinstance(module, nn.Conv2d) and name not in self.after:
                    self._lay(module)

    def undo(self) -> None:
        """Give each module its own forward and the layout of its weight back."""
        while self._undo:
            self._undo.pop()()
        self.after.clear()

    def _fold(self, name: str, module: Any, norm: Any) -> None:
        scale, shift = _scale_and_shift(norm)
        geometry = Geometry.of(module)
        bias = shift if module.bias is None else shift + scale * module.bias.detach().double()
        after, bias = scale.to(norm.running_mean.dtype), bias.to(norm.running_mean.dtype)
        if isinstance(module, HeldConvolution):
            if self.innermost and isinstance(module, nn.Conv2d):
                self._lay(module)
            run: Callable[[Tensor, Geometry], Tensor] = partial(module.run, after=after, bias=bias)
        else:
            weight = geometry.times(module.weight.detach().double(), scale).to(module.weight.dtype)
            if self.innermost and weight.dim() == 4:
                weight = weight.contiguous(memory_format=torch.channels_last)

            def run(x: Tensor, geometry: Geometry) -> Tensor:
                return geometry.run(geometry.padded(x), weight, bias)

        def forward(x: Tensor, output_size: Any = None) -> Tensor:
            return run(x, towards(module, geometry, x, output_size))

        self._set(module, forward)
        self._set(norm, _same)
        self.after[name] = after

    def _lay(self, module: nn.Conv2d) -> None:
        if isinstance(module, HeldConvolution):
            module.lay(torch.channels_last)
            self._undo.append(lambda: module.lay(torch.contiguous_format))
            return
        kept = module.weight
        laid = kept.detach().contiguous(memory_format=torch.channels_last)
        module.weight = nn.Parameter(laid, requires_grad=False)

        def back() -> None:
            module.weight = nn.Parameter(module.weight.detach().contiguous(), requires_grad=False)

        self._undo.append(back)

    def _set(self, module: Any, forward: Callable[..., Tensor]) -> None:
        module.forward = forward
        self._undo.append(lambda: delattr(module, "forward"))


def folded(backbone: nn.Module) -> int:
    """Numbers in the weights that an engine keeps beside those of convolutions into which norms are folded, at most."""
    if not any(map(has_statistics, backbone.modules())):
        return 0
    return sum(
        module.weight.numel()
        for module in backbone.modules()
        if isinstance(module, CONVOLUTIONS) and not isinstance(module, HeldConvolution)
    )


def _same(x: Tensor) -> Tensor:
    return x


def _where(backbone: nn.Module) -> tuple[torch.device, torch.dtype]:
    held = {id(module.weight) for module in backbone.modules() if isinstance(module, Held)}  # these have no dtype
    floats = (p for p in backbone.parameters() if p.is_floating_point() and id(p) not in held)
    first = next(floats, torch.empty(0))
    return first.device, first.dtype


def outermost(outputs: Any) -> Any:
    """A model's outputs with every tensor's last axis innermost in memory, as a class without `Frozen` gives them."""
    if isinstance(outputs, Tensor):
        return outputs.contiguous()
    if isinstance(outputs, Mapping):  # transformers' ModelOutput too, before it is taken for a dataclass
        laid = {name: outermost(value) for name, value in outputs.items()}
        return laid if type(outputs) is dict else type(outputs)(**laid)
    if is_dataclass(outputs) and not isinstance(outputs, type):
        return replace(outputs, **{field.name: outermost(getattr(outputs, field.name)) for field in fields(outputs)})
    if isinstance(outputs, (tuple, list)):
        parts = [outermost(value) for value in outputs]
        return type(outputs)(*parts) if hasattr(outputs, "_fields") else type(outputs)(parts)
    if isinstance(outputs, SimpleNamespace):
        return SimpleNamespace(**outermost(vars(outputs)))
    return outputs


def innermost(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pictures, [rows, channels, height, width], with their channels innermost in memory; all else as it is."""
    return {name: _innermost(tensor) for name, tensor in inputs.items()}


def _innermost(x: Tensor) -> Tensor:
    pictures = x.dim() == 4 and x.is_floating_point()
    return x.contiguous(memory_format=torch.channels_last) if pictures else x


# -------------------------------------------------------------------- norms


def has_statistics(module: nn.Module) -> bool:
    """Whether it is a batch norm that multiplies and adds what it was trained to."""
    if not isinstance(module, _BatchNorm) or type(module).forward is not _BatchNorm.forward:
        return False
    hooked = module._forward_hooks or module._forward_pre_hooks
    return not module.training and module.running_mean is not None and module.running_var is not None and not hooked


def _scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """In float64, [channels]."""
    mean, variance = norm.running_mean.detach().double(), norm.running_var.detach().double()
    scale = (variance + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.detach().double()
    shift = -mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


def _affine(norm: Any) -> Callable[[Tensor], Tensor]:
    """The norm as one multiplication and one addition."""
    exact = torch.promote_types(norm.running_mean.dtype, torch.float32)
    scale, shift = (value.to(exact) for value in _scale_and_shift(norm))

    def forward(x: Tensor) -> Tensor:
        axes = [-1, *[1] * (x.dim() - 2)]
        return torch.addcmul(shift.view(axes), x, scale.view(axes)).to(x.dtype)

    return forward


def contiguous_gradient(x: Tensor) -> None:
    """From now on the gradient of x reaches whatever made it as one stretch of memory."""
    if x.requires_grad and not x.is_leaf:
        x.register_hook(torch.Tensor.contiguous)


def _guard(_: nn.Module, __: Any, output: Any) -> None:
    if isinstance(output, Tensor):
        contiguous_gradient(output)


# -------------------------------------------------------------------- what is folded


def _pairs(
    backbone: nn.Module,
    inputs: Mapping[str, Tensor],
    convolutions: Mapping[str, nn.Module],
    norms: Mapping[str, nn.Module],
) -> dict[str, str]:
    """The norm behind each convolution whose output goes there alone, by name; none where the class does not run."""
    made: dict[str, list[Any]] = {name: [] for name in (*convolutions, *norms)}
    tensors = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
    blank = {name: tensor.to("meta") for name, tensor in tensors.items()}
    given = {name: _blank(tensor) for name, tensor in inputs.items()}

    def note(name: str) -> Callable[..., None]:
        return lambda _, __, output: made[name].append(output.grad_fn)

    hooks = [module.register_forward_hook(note(name)) for name, module in {**convolutions, **norms}.items()]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            outputs = torch.func.functional_call(backbone, blank, (), given)
            roots = [tensor.grad_fn for tensor in _tensors(outputs) if tensor.grad_fn is not None]
    except Exception:  # a class may raise anything where it is given no numbers
        return {}
    finally:
        for hook in hooks:
            hook.remove()
    readers = _readers(roots)
    of_norm = {nodes[0]: name for name, nodes in made.items() if name in norms and len(nodes) == 1}
    pairs = {}
    for name in convolutions:
        nodes = made[name]
        if len(nodes) == 1 and nodes[0] is not None and len(readers[nodes[0]]) == 1:
            reader = readers[nodes[0]][0]
            if reader in of_norm:
                pairs[name] = of_norm[reader]
    owners = Counter(id(p) for module in backbone.modules() for p in module.parameters(recurse=False))
    return {
        name: norm for name, norm in pairs.items() if all(owners[id(p)] == 1 for p in convolutions[name].parameters())
    }


def _blank(tensor: Tensor) -> Tensor:
    blank = torch.empty_like(tensor, device="meta")
    return blank.requires_grad_() if blank.is_floating_point() else blank


def _takes_innermost(backbone: nn.Module, inputs: Mapping[str, Tensor]) -> bool:
    """Whether the class runs on pictures that lie so; one may ask for the layout that it is used to."""
    two = {name: torch.cat([tensor, tensor]) for name, tensor in inputs.items()}
    try:
        with torch.inference_mode():
            backbone(**innermost(two))
    except Exception:  # a class may raise anything
        return False
    return True


def _readers(roots: list[Any]) -> dict[Any, list[Any]]:
    """Which nodes of a graph read each node's output, once for each reading; an output of the whole is read too."""
    readers: dict[Any, list[Any]] = {}
    waiting = []
    for root in roots:
        readers.setdefault(root, []).append(None)
        waiting.append(root)
    seen = set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        for source, _ in node.next_functions:
            if source is not None:
                readers.setdefault(source, []).append(node)
                waiting.append(source)
    return readers


def _tensors(outputs: Any) -> list[Tensor]:
    """Every tensor among outputs, of objects too."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        return [tensor for value in outputs.values() for tensor in _tensors(value)]
    if isinstance(outputs, (tuple, list)):
        return [tensor for value in outputs for tensor in _tensors(value)]
    held = vars(outputs) if hasattr(outputs, "__dict__") else {}
    return [tensor for value in held.values() for tensor in _tensors(value)]
