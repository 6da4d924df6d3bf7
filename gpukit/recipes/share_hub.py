"""A GGUF or a model folder, sent to the Hugging Face hub with a card that tells what it is."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gpukit.errors import ArgumentError
from gpukit.events import Report
from gpukit.formats.file_types import file_type_name
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.gguf_split import part_of, part_path
from gpukit.recipes.references import locate
from gpukit.remote.hub import HubModel, parse_id
from gpukit.remote.hub_push import HubPushed, push_files
from gpukit.store.names import ModelName
from gpukit.store.store import Store

# How a base on the hub is named in a file's metadata.
_HUB = "https://huggingface.co/"


def push_to_hub(
    store: Store, source: str | Path, to: str | None, *, private: bool, report: Report
) -> tuple[HubModel, HubPushed, int]:
    """Send a GGUF (all its parts), a model folder or a stored model; what it was sent to, what came
    of it, and bytes of the files.

    `NotFoundError` for what is not there, `StoreError` for a stored model with adapters beside its
    weights, `HubError` for what the hub refuses.
    """
    # What a model of the store is called there is its repository on the hub.
    target = parse_id(to or str(source).partition(":")[0])
    found = locate(source, store=store)
    if isinstance(found.model, HubModel):
        raise ArgumentError(
            f"{source}: no model of this store; name a path, or a model that it has"
        )
    path = found.fetch(report)
    files = _files(path, target, found.model if isinstance(found.model, ModelName) else None)
    size = sum(each.stat().st_size for each in files.values())
    target = replace(target, file=None)

    def card() -> str:
        return "".join(_card(target, files))

    return target, push_files(target, files, card, private=private, report=report), size


def _files(path: Path, target: HubModel, name: ModelName | None) -> dict[str, Path]:
    """The files to send by their names there; of a folder those that are not hidden."""
    if path.is_dir():
        if target.file:
            raise ArgumentError(f"{target.display}: {path} is a folder, of which no file is made")
        inside = sorted(each for each in path.iterdir() if each.is_file())
        return {each.name: each for each in inside if not each.name.startswith(".")}
    if part := part_of(path.name):
        paths = [part_path(path.with_name(part[0]), n, part[2]) for n in range(part[2])]
        return {each.name: each for each in paths}
    stored = f"{name.model}-{name.tag}.gguf" if name else path.name
    return {target.file or stored: path}


def _card(target: HubModel, files: dict[str, Path]) -> Iterator[str]:
    """A model card: what the files say of themselves, and how to run them."""
    ggufs = {name: path for name, path in files.items() if name.endswith(".gguf")}
    yield "---\n"
    if ggufs:
        with GGUFFile(next(iter(ggufs.values()))) as first:
            yield from _told(first)
        yield "library_name: gguf\n"
    yield "tags:\n- gpukit\n---\n\n"
    yield f"# {target.repo.partition('/')[2]}\n\n"
    if not ggufs:
        return
    yield "| file | type | bytes |\n|---|---|---|\n"
    for name, path in ggufs.items():
        with GGUFFile(path) as file:
            kind = file_type_name(file.get("general.file_type"))
        yield f"| `{name}` | {kind} | {path.stat().st_size} |\n"
    yield "\nMade with gpukit. To run it:\n\n"
    yield f"    gpukit run hf.co/{target.repo}\n    ollama run hf.co/{target.repo}\n"


def _told(file: GGUFFile) -> Iterator[str]:
    """Lines of the card's head that the metadata gives."""
    if isinstance(licence := file.get("general.license"), str) and licence:
        yield f"license: {json.dumps(licence.lower())}\n"
    url = file.get("general.base_model.0.repo_url")
    if isinstance(url, str) and url.startswith(_HUB):
        yield f"base_model: {json.dumps(url.removeprefix(_HUB).strip('/'))}\n"
        yield "base_model_relation: quantized\n"
