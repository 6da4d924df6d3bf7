"""`gpukit inspect`: what is inside a GGUF, a file of weights or a model folder."""

import json as jsonlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpukit_cli.options import Hub, Json, Pre, Quiet, stored_names
from gpukit_cli.output import print_json
from gpukit_cli.progress import human_bytes, reporter

if TYPE_CHECKING:
    from gpukit.recipes.inspect import Inspection
    from gpukit.tokenizer.summary import TokenizerSummary

# What one line of metadata shows of a long value.
SHOWN_ITEMS = 6
SHOWN_CHARACTERS = 100
# Lines of a chat template.
SHOWN_LINES = 8

TITLES = {"safetensors": "safetensors", "pytorch": "PyTorch", "checkpoint": "model folder"}


def inspect(
    file: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="A GGUF, a .safetensors, .bin or .pth file, a model folder, a name in the store, "
            "or hf.co/org/name.",
            autocompletion=stored_names,
        ),
    ],
    tensors: Annotated[
        bool, typer.Option("--tensors", help="Show every tensor; --json always does.")
    ] = False,
    pre: Pre = None,
    hub: Hub = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Show architecture, metadata, tokenizer, chat template and tensors by type."""
    import gpukit

    with reporter(quiet) as report:
        found = gpukit.inspect(file, pre=pre, hub=hub, report=report)
    if json:
        print_json(found.as_json())
        return
    _print_head(found)
    if found.metadata:
        print(f"\nMetadata ({len(found.metadata)})")
        width = max(len(entry.key) for entry in found.metadata)
        for entry in found.metadata:
            print(f"  {_line(entry.key):<{width}}  {entry.type:<9} {_shown(entry.value)}")
    if found.tokenizer:
        _print_tokenizer(found.tokenizer)
    for name, text in found.chat_templates.items():
        _print_template(name, text)
    if tensors:
        _print_tensors(found)
    print("\nTypes")
    for row in found.totals:
        _print_total(row.type, row.tensors, row.weights, row.nbytes)
    nbytes = sum(tensor.nbytes for tensor in found.tensors)
    elements = sum(tensor.n_elements for tensor in found.tensors)
    _print_total("all", len(found.tensors), elements, nbytes)


def _print_head(found: "Inspection") -> None:
    title = TITLES.get(found.format) or f"GGUF v{found.details['version']}"
    architecture = found.architecture or "no architecture"
    if found.format in ("safetensors", "pytorch"):
        architecture = "weights"
    print(f"{found.name}: {title}, {human_bytes(found.size)}, {_line(architecture)}, "
          f"{found.elements:,} parameters")  # fmt: skip
    if found.format == "gguf":
        facts = found.details
        file_type = f"file type {found.file_type}" if found.file_type else "no file type"
        print(f"{file_type}, alignment {facts['alignment']}, "
              f"data from byte {facts['data_start']}")  # fmt: skip
    if len(found.files) > 1:
        print(f"{len(found.files)} files: {found.files[0].name} … {found.files[-1].name}")
    if found.left_out:
        names = ", ".join(found.left_out[:3]) + (", …" if found.left_out[3:] else "")
        print(f"{len(found.left_out)} tensors have no place of their own in a GGUF: {_line(names)}")
    if found.problem:
        print(f"cannot be converted: {_line(found.problem)}")


def _print_tokenizer(found: "TokenizerSummary") -> None:
    print("\nTokenizer")
    pre = f", pre-tokenizer {_line(found.pre)}" if found.pre else ""
    merges = f", {found.merges:,} merges" if found.merges else ""
    print(f"  model      {_line(found.model)}{pre}{merges}")
    types = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in found.types.items())
    print(f"  tokens     {found.tokens:,} ({types})")
    for name, token in found.special.items():
        print(f"  {name:<10} {token.id} {_shown(token.text)}")
    if found.ends:
        ends = ", ".join(f"{token.id} {_shown(token.text)}" for token in found.ends)
        print(f"  ends       {ends}")
    for name, flag in found.adds.items():
        print(f"  {name.replace('_', ' ')}: {'yes' if flag else 'no'}")


def _print_template(name: str, text: str) -> None:
    title = "Chat template" if name == "default" else f"Chat template {_line(name)}"
    print(f"\n{title} ({len(text):,} characters)")
    lines = text.splitlines()
    for line in lines[:SHOWN_LINES]:
        print(f"  {_line(line[:SHOWN_CHARACTERS])}{'…' if line[SHOWN_CHARACTERS:] else ''}")
    if lines[SHOWN_LINES:]:
        print(f"  … {len(lines) - SHOWN_LINES} more lines")


def _print_tensors(found: "Inspection") -> None:
    print(f"\nTensors ({len(found.tensors)})")
    names = max((len(tensor.name) for tensor in found.tensors), default=0)
    shapes = [" x ".join(map(str, tensor.shape)) for tensor in found.tensors]
    width = max(map(len, shapes), default=0)
    for tensor, shape in zip(found.tensors, shapes, strict=True):
        print(f"  {_line(tensor.name):<{names}}  {shape:>{width}}  {tensor.type:<8} "
              f"{human_bytes(tensor.nbytes):>8}")  # fmt: skip


def _print_total(name: str, tensors: int, weights: int, nbytes: int) -> None:
    bits = 8 * nbytes / weights if weights else 0.0
    print(
        f"  {name:<8} {tensors:>5} tensors {weights:>16,} weights {human_bytes(nbytes):>8}  "
        f"{bits:.2f} bits per weight"
    )


def _line(text: str) -> str:
    """`text` from a file, fit for a terminal."""
    from gpukit.errors import one_line

    return one_line(text)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        text = _line(jsonlib.dumps(value, ensure_ascii=False))
        if len(text) > SHOWN_CHARACTERS:
            return f"{text[:SHOWN_CHARACTERS]}… ({len(value)} characters)"
        return text
    if isinstance(value, bool) or value is None:
        return jsonlib.dumps(value)
    if isinstance(value, int | float):
        return f"{value:.9g}" if isinstance(value, float) else str(value)
    if isinstance(value, dict):
        items = [f"{_shown(key)}: {_shown(item)}" for key, item in value.items()]
        more = ", …" if items[SHOWN_ITEMS:] else ""
        return f"{{{', '.join(items[:SHOWN_ITEMS])}{more}}}"
    items = [_shown(item) for item in value[:SHOWN_ITEMS]]
    more = ", …" if len(value) > SHOWN_ITEMS else ""
    return f"[{', '.join(items)}{more}] ({len(value)} items)"
