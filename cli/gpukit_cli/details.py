"""What `show` prints of a model."""

import json as jsonlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpukit_cli.output import print_table

if TYPE_CHECKING:
    from gpukit.recipes.show import AdapterDetails, ModelDetails

# Of long texts `show` gives the beginning.
SHOWN_LINES = 2
SHOWN_ITEMS = 80


def print_details(found: "ModelDetails", *, verbose: bool) -> None:
    """Print what is known of a model, section by section; with `verbose` metadata and tensors."""
    facts = [
        ("architecture", found.architecture),
        ("parameters", found.parameter_size),
        ("context length", found.context_length),
        ("embedding length", found.embedding_length),
        ("quantization", found.quantization),
        ("requires", found.config.requires),
        ("remote model", found.config.remote_model),
        ("remote host", found.config.remote_host),
    ]
    _section("Model", [(key, str(value)) for key, value in facts if value])
    _section("Capabilities", [(each,) for each in found.capabilities])
    _section("Adapters", [_adapter_row(adapter) for adapter in found.adapters])
    _section("Projectors", [_file_row(path) for path in found.projectors])
    _section("Drafts", [_file_row(path) for path in found.drafts])
    _section("Parameters", parameter_rows(found))
    if verbose:
        rows = [(f.key, _short(jsonlib.dumps(_listed(f.value), ensure_ascii=False)))
                for f in found.fields]  # fmt: skip
        _section("Metadata", rows)
        _section("Tensors", [(t.name, t.type, str(list(t.ne))) for t in found.tensors])
    _section("System", _beginning(found.system))
    _section("License", _beginning("\n".join(found.licenses)))


def _adapter_row(adapter: "AdapterDetails") -> tuple[str, ...]:
    from gpukit_cli.progress import human_bytes

    ranks = ", ".join(map(str, adapter.ranks))
    short = adapter.path.name.removeprefix("sha256-")[:12]
    return (adapter.name or short, f"rank {ranks}", f"{adapter.tensors} tensors",
            human_bytes(adapter.size))  # fmt: skip


def _file_row(path: Path) -> tuple[str, ...]:
    from gpukit_cli.progress import human_bytes

    return path.name.removeprefix("sha256-")[:12], human_bytes(path.stat().st_size)


def _section(title: str, rows: Sequence[tuple[str, ...]]) -> None:
    if not rows:
        return
    print(f"  {title}")
    print_table(rows, indent="    ")
    print()


def parameter_rows(found: "ModelDetails") -> list[tuple[str, ...]]:
    """The name and the value of each parameter, texts in quotes."""
    from gpukit.store.parameters import words

    texts = {key for key, value in found.params.items() if isinstance(value, str | list)}
    return [
        (key, jsonlib.dumps(word, ensure_ascii=False) if key in texts else word)
        for key, word in words(found.params)
    ]


def _beginning(text: str) -> list[tuple[str, ...]]:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    shown = [(line,) for line in lines[:SHOWN_LINES]]
    return [*shown, ("...",)] if len(lines) > SHOWN_LINES else [*shown]


def _listed(value: Any) -> Any:
    # No more of a vocabulary than a line can show.
    value = value[:SHOWN_ITEMS] if hasattr(value, "__getitem__") else value
    return value.tolist() if hasattr(value, "tolist") else value


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"
