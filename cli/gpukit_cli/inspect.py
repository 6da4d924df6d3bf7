"""`gpukit inspect`: what is inside a GGUF file."""

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer

# What one line of metadata shows of a long value.
SHOWN_ITEMS = 6
SHOWN_CHARACTERS = 100


def inspect(
    file: Annotated[Path, typer.Argument(help="A GGUF file.")],
    json: Annotated[
        bool, typer.Option("--json", help="One JSON document, arrays in full.")
    ] = False,
) -> None:
    """Show a GGUF's header, metadata and tensors."""
    from gpukit.recipes.describe import describe_gguf

    found = describe_gguf(file)
    if json:
        print(jsonlib.dumps(found.as_json(), ensure_ascii=False))
        return
    _print(found)


def _print(found: Any) -> None:
    from gpukit.recipes.describe import type_name
    from gpukit_cli.progress import human_bytes

    print(f"{found.path}: GGUF v{found.version}, {human_bytes(found.size)}, "
          f"{found.architecture or 'no architecture'}, {found.elements:,} parameters")  # fmt: skip
    print(f"alignment {found.alignment}, data from byte {found.data_start}")
    print(f"\nMetadata ({len(found.fields)})")
    width = max((len(f.key) for f in found.fields), default=0)
    for f in found.fields:
        print(f"  {f.key:<{width}}  {type_name(f):<9} {_shown(f.value)}")
    print(f"\nTensors ({len(found.tensors)})")
    name_width = max((len(t.name) for t in found.tensors), default=0)
    shapes = [" x ".join(map(str, t.ne)) for t in found.tensors]
    shape_width = max(map(len, shapes), default=0)
    for t, shape in zip(found.tensors, shapes, strict=True):
        print(f"  {t.name:<{name_width}}  {shape:>{shape_width}}  {t.type:<8} "
              f"{human_bytes(t.nbytes):>8}")  # fmt: skip
    print("\nTypes")
    for row in found.totals:
        _print_total(row.type, row.tensors, row.elements, row.nbytes)
    _print_total("all", len(found.tensors), found.elements, found.nbytes)


def _print_total(name: str, tensors: int, weights: int, nbytes: int) -> None:
    from gpukit_cli.progress import human_bytes

    bits = 8 * nbytes / weights if weights else 0.0
    print(
        f"  {name:<8} {tensors:>5} tensors {weights:>16,} weights {human_bytes(nbytes):>8}  "
        f"{bits:.2f} bits per weight"
    )


def _shown(value: Any) -> str:
    if isinstance(value, str):
        text = jsonlib.dumps(value, ensure_ascii=False)
        if len(text) > SHOWN_CHARACTERS:
            return f"{text[:SHOWN_CHARACTERS]}… ({len(value)} characters)"
        return text
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value:.9g}" if isinstance(value, float) else str(value)
    items = ", ".join(_shown(item) for item in value[:SHOWN_ITEMS])
    more = ", …" if len(value) > SHOWN_ITEMS else ""
    return f"[{items}{more}] ({len(value)} items)"
