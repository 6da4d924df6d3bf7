"""Weights stored as 8-bit floats with scales beside them: which scale belongs to which weight.

Understood are the checkpoints of transformers' and DeepSeek's `fp8` (blocks, rows or one scale a
tensor), of compressed-tensors (`float-quantized`), of ModelOpt (`FP8`) and of `fbgemm_fp8`. A value
is float32(weight) * float32(scale), as in llama.cpp's converter.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

from gpukit.errors import CheckpointError, one_line
from gpukit.events import Report, Warned, ignore
from gpukit.formats.checkpoint import Checkpoint
from gpukit.formats.safetensors import StoredTensor
from gpukit.models.packed import PackedWeights
from gpukit.models.values import of_folder, section

if TYPE_CHECKING:
    from torch import Tensor

NONE = PackedWeights()
PLAIN = ("BF16", "F16", "F32", "F64")
MODELOPT = "hf_quant_config.json"
# The types of weights and of scales, and what torch calls them.
FP8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
SCALES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F8_E8M0": "float8_e8m0fnu"}

# The scale of `X.weight` by its name's end instead of `weight`, in the order of preference.
SCALE_NAMES = ("weight_scale_inv", "weight_scale", "qscale_weight")
# What belongs to quantised activations and caches, which a GGUF has no use for.
UNUSED = (
    "activation_scale", ".input_scale", ".input_scale_ub", ".input_zero_point", ".qscale_act",
    ".q_scale", ".k_scale", ".v_scale", ".output_scale",
)  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """The scales of one weight; each holds for `rows` times `columns` values."""

    tensor: StoredTensor
    rows: int
    columns: int


@dataclass(frozen=True)
class Scales:
    """The scales of a checkpoint by the weight's name, and the names that nothing uses."""

    by_weight: Mapping[str, Scale] = field(default_factory=dict)
    unused: tuple[str, ...] = ()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    @cached_property
    def _names(self) -> set[str]:
        return {scale.tensor.name for scale in self.by_weight.values()} | set(self.unused)


def find_scales(
    checkpoint: Checkpoint, report: Report = ignore, known: PackedWeights = NONE
) -> Scales:
    """The scales of every 8-bit float in `checkpoint`, but for what `known` has already; empty for
    one without any.

    The tensors decide: settings of a quantisation that none of them shows are told and passed over.
    `CheckpointError` for weights that are quantised in another way, for a scale that is missing,
    that no weight asks for, or whose shape does not fit its weight.
    """
    with of_folder(checkpoint.folder):
        settings = _settings(checkpoint, report, known)
        block = _block(settings)
    tensors = [tensor for tensor in checkpoint if tensor.name not in known]
    weights = [tensor for tensor in tensors if tensor.dtype in FP8]
    if not settings and not any(tensor.name.endswith(SCALE_NAMES) for tensor in tensors):
        return Scales()
    found = {}
    for weight in weights:
        stem = weight.name.removesuffix("weight")
        names = [stem + end for end in SCALE_NAMES if stem + end in checkpoint.tensors]
        if not names:
            raise CheckpointError(
                f"{weight.path}: {weight.name} is {weight.dtype} without a {stem}{SCALE_NAMES[0]} "
                f"or {SCALE_NAMES[1]}; fetch the folder again"
            )
        found[weight.name] = _fitted(weight, checkpoint.tensors[names[0]], block)
    return Scales(found, tuple(t.name for t in tensors if t.name.endswith(UNUSED)))


def _settings(checkpoint: Checkpoint, report: Report, known: PackedWeights) -> dict[str, Any]:
    """How the weights are quantised, as config.json or ModelOpt's own file says it."""
    found, file = section(checkpoint.config, "quantization_config"), "config.json"
    other = None if found else checkpoint.read_json(MODELOPT)
    if other:
        found, file = {"quant_method": "modelopt", **section(other, "quantization")}, MODELOPT
    if found and _plain(checkpoint):
        # A model that was merged or trained on keeps the settings of what it came from.
        method = one_line(str(found.get("quant_method", "unknown")))[:40]
        report(
            Warned(
                f"{checkpoint.folder / file}: a quantisation ({method}) that no tensor shows; all "
                "are plain floats and read as that"
            )
        )
        return {}
    if found and not known.views:
        _check_method(found, checkpoint)
    return found


def _plain(checkpoint: Checkpoint) -> bool:
    """Whether every tensor is in floats of 16 bits or more, and none is a scale."""
    return all(t.dtype in PLAIN and not t.name.endswith(SCALE_NAMES) for t in checkpoint)


def _check_method(settings: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    method = settings.get("quant_method", "unknown")
    kind = settings.get("format", settings.get("quant_algo"))
    known = {
        "fp8": True,
        "fbgemm_fp8": True,
        "modelopt": kind == "FP8",
        "compressed-tensors": kind in ("float-quantized", "naive-quantized"),
        # Blocks that are carried over by the architecture that has them.
        "mxfp4": any(tensor.name.endswith("_blocks") for tensor in checkpoint),
    }
    if not known.get(method, False):
        shown = f"{method}, {kind}" if kind else method
        raise CheckpointError(
            f"config.json: quantization_config: the weights are quantised ({shown}), and not in a "
            "way that can be imported: fetch the checkpoint in BF16, F16, F32, FP8, NVFP4 or GPTQ"
        )


def _block(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of a block where the settings give them."""
    block = settings.get("weight_block_size")
    for group in section(settings, "config_groups").values():
        weights = section(group, "weights") if isinstance(group, dict) else {}
        block = weights.get("block_structure") or block
    if isinstance(block, str):
        block = [int(part) if part.isdecimal() else 0 for part in block.split("x")]
    if block is None:
        return None
    if not isinstance(block, list) or len(block) != 2 or not all(_positive(n) for n in block):
        raise CheckpointError(
            f"config.json: quantization_config: blocks of {str(block)[:60]}; two sizes are needed"
        )
    return block[0], block[1]


def _positive(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 31


def _fitted(weight: StoredTensor, scale: StoredTensor, block: tuple[int, int] | None) -> Scale:
    """How many values of `weight` each of the scales covers."""
    # As steps see it: a tensor of one dimension has rows of one value.
    columns = weight.shape[-1] if len(weight.shape) > 1 else 1
    rows = prod(weight.shape) // columns
    shape = tuple(scale.shape)
    if scale.dtype not in SCALES:
        raise CheckpointError(
            f"{scale.path}: {scale.name} is {scale.dtype}; {', '.join(SCALES)} can be read"
        )
    if prod(shape) == 1:
        return Scale(scale, rows, columns)
    if block is not None and len(weight.shape) == 2 and shape == _blocks(weight.shape, block):
        return Scale(scale, *block)
    if shape in ((rows,), (rows, 1)):
        return Scale(scale, 1, columns)
    wanted = f" in blocks of {block[0]} x {block[1]}" if block else ""
    raise CheckpointError(
        f"{scale.path}: {scale.name} has shape {list(shape)}, which does not fit {weight.name} of "
        f"{list(weight.shape)}{wanted}"
    )


def _blocks(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    return tuple(-(-size // part) for size, part in zip(shape, block, strict=True))


def read_scale(checkpoint: Checkpoint, scale: Scale) -> "Tensor":
    """float32 `[blocks of rows, blocks of columns]`."""
    import torch

    data = bytearray(scale.tensor.nbytes)
    checkpoint.read_into(scale.tensor, memoryview(data))
    dtype = getattr(torch, SCALES[scale.tensor.dtype])
    values = torch.frombuffer(data, dtype=dtype).to(torch.float32)
    return values.view(-1, scale.tensor.shape[-1] if len(scale.tensor.shape) == 2 else 1)


def scaled(stored: "Tensor", row: int, scale: Scale, scales: "Tensor") -> "Tensor":
    """float32 `[rows, width]` of 8-bit floats `[rows, width]`, the first being row `row` of the
    weight; `scales` as `read_scale` gives them."""
    import torch

    scales = scales.to(stored.device)
    rows = torch.arange(row, row + stored.shape[0]).div(scale.rows, rounding_mode="floor")
    columns = torch.arange(stored.shape[1]).div(scale.columns, rounding_mode="floor")
    each = scales[rows.to(scales.device)][:, columns.to(scales.device)]
    return stored.to(torch.float32) * each
