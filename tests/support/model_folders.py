"""Model folders as `write_folder` makes them, and what is in one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from support.adapters import quiet
from torch import Tensor

from gpukit.adapters.adapter import Adapter
from gpukit.adapters.base import Base
from gpukit.adapters.delta import Delta, merged_rows
from gpukit.adapters.opening import open_adapter
from gpukit.adapters.together import combined
from gpukit.conversion.folder import FolderOptions, FolderResult, write_folder
from gpukit.formats.checkpoint import Checkpoint
from gpukit.sources.stored import changes_of

KINDS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


@dataclass(frozen=True)
class Merging:
    """The reference as a step."""

    records: Mapping[str, Sequence[Delta]]

    def __call__(self, name: str, row: int, rows: Tensor, /) -> Tensor:
        records = self.records.get(name)
        if not records:
            return rows
        wide = rows if rows.dtype is torch.float64 else rows.to(torch.float32)
        return merged_rows(wide, row, records)


def copied(folder: Path, out: Path, steps: Sequence[Any] = (), **options: Any) -> FolderResult:
    given = {key: options.pop(key) for key in ("changes", "budget", "report") if key in options}
    with Checkpoint(folder) as checkpoint:
        return write_folder(
            checkpoint, out, steps, options=FolderOptions(**options), device="cpu", **given
        )


def merged(base: Path, adapter: Path, out: Path, budget: int = 4 << 30, **options: Any) -> Adapter:
    """The base with the adapter merged in `out`."""
    with Checkpoint(base) as checkpoint, open_adapter(adapter, Base.of(checkpoint)) as opened:
        records = combined([opened])
        write_folder(
            checkpoint,
            out,
            [Merging(records)],
            changes=changes_of(checkpoint, records, opened.added),
            options=FolderOptions(
                vocabulary=opened.vocabulary, untied=bool(opened.added), **options
            ),
            device="cpu",
            budget=budget,
        )
        return opened


def loaded(folder: Path) -> Any:
    """The model as transformers loads it, in float64; nothing lacks and nothing is left over."""
    with quiet():
        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float64, output_loading_info=True
        )
    assert not any(found.values()), found
    return model.eval()


def logits(model: Any) -> Tensor:
    if model.config.model_type == "mixtral":  # whose experts know no float64
        model = model.float()
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


def weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def raw(values: Tensor) -> bytes:
    return values.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
