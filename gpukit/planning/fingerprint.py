"""What an output is made of, as far as a later run must know it to trust or to go on with it.

    {"source": [FILE, …], "adapters": [{"weight": F, "files": [FILE, …]}, …],
     "recipe": {"type": …, OPTION: …}, "gpukit": VERSION}

A FILE has its name, its size, its time of change in ns, and the sha256 of its first and last bytes,
where headers stand. Device and memory are no part: the bytes are the same.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpukit.errors import ArgumentError
from gpukit.formats.atomic import disk_errors
from gpukit.formats.folder import read_files
from gpukit.formats.gguf_split import part_of, part_path
from gpukit.planning.provenance import Recipe, adapter_files, recipe_words
from gpukit.version import VERSION

if TYPE_CHECKING:
    from gpukit.sources.converter_process import Converter

# Bytes of each end of a file that are looked at.
END = 64 << 10
# Parts of a recipe that are files.
PATHS = ("imatrix", "tensor_type_file", "like", "converter")


def fingerprint_of(source: Path, recipe: Recipe) -> dict[str, Any]:
    """The fingerprint of what `recipe` makes of the model at `source`; `DiskError` for a file that
    cannot be read, `ArgumentError` where another run would make something else."""
    options, merge = recipe.options, recipe.merge
    asked: dict[str, Any] = {
        "type": (recipe.type or "").upper(),
        "options": [*recipe_words(recipe)],
    }
    if options.imatrix is not None and options.imatrix.is_file:
        asked["imatrix"] = [file_facts(options.imatrix.path)]
    if options.like is not None:
        asked["like"] = [file_facts(options.like)]
    if recipe.converter is not None:
        asked["converter"] = converter_facts(recipe.converter)
    if merge is not None and (how := merge.combining) is not None:
        asked["combine"] = asdict(how)
        if how.is_random:
            raise ArgumentError(
                f"{how.method} leaves values to chance, which another run could not go on with; "
                "give --seed with --resume"
            )
    adapters = () if merge is None else merge.adapters
    return {
        "source": [*map(file_facts, files_of(source))],
        "adapters": [
            {"weight": chosen.weight, "files": [*map(file_facts, adapter_files(chosen.path))]}
            for chosen in adapters
        ],
        "recipe": asked,
        "gpukit": VERSION,
    }


def converter_facts(how: "Converter") -> dict[str, Any]:
    """The version of llama.cpp's converter, as a digest of its code, and its arguments; `DiskError`
    for code that cannot be read. Clones of one version are one."""
    found = sha256()
    for path in how.scripts():
        with disk_errors(path):
            facts = path.stat()
            digest = _whole(os.path.realpath(path), facts.st_size, facts.st_mtime_ns)
        found.update(f"{path.relative_to(how.tree)} {digest}\n".encode())
    return {"code": found.hexdigest(), "arguments": [*how.arguments], "trust": how.trust}


def files_of(path: Path) -> list[Path]:
    """The files that a model or an adapter at `path` is read from."""
    if path.is_dir():
        # A GGUF beside the weights is what some conversion has made of them.
        return [file for file in read_files(path) if file.suffix != ".gguf" and file.is_file()]
    if (part := part_of(path.name)) is not None:
        first = path.with_name(f"{part[0]}.gguf")
        return [part_path(first, number, part[2]) for number in range(part[2])]
    return [path]


def file_facts(path: Path) -> dict[str, Any]:
    """The FILE of `path`; `DiskError` where it cannot be read."""
    with disk_errors(path):
        facts = path.stat()
        digest = _ends(os.path.realpath(path), facts.st_size, facts.st_mtime_ns)
    return {
        "name": path.name, "size": facts.st_size, "mtime_ns": facts.st_mtime_ns, "ends": digest,
    }  # fmt: skip


@lru_cache(maxsize=1 << 10)
def _whole(path: str, size: int, mtime_ns: int) -> str:
    """The sha256 of a small file, as `_ends`."""
    del size, mtime_ns
    with open(path, "rb") as file:
        return sha256(file.read()).hexdigest()


@lru_cache(maxsize=1 << 16)
def _ends(path: str, size: int, mtime_ns: int) -> str:
    """The sha256 of both ends of a file; its size and time say whether what is known holds."""
    del mtime_ns
    with open(path, "rb") as file:
        digest = sha256(file.read(END))
        file.seek(max(size - END, 0))
        digest.update(file.read(END))
    return digest.hexdigest()


def difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What of `now` is other than `then`, in words; None where they agree."""
    if then.get("gpukit") != now["gpukit"]:
        return f"gpukit was {then.get('gpukit')} and is {now['gpukit']}"
    if told := _other_files("source", then.get("source", []), now["source"]):
        return told
    old, new = then.get("adapters", []), now["adapters"]
    if len(old) != len(new):
        return f"adapters were {len(old)} and are {len(new)}"
    for before, after in zip(old, new, strict=True):
        if before["weight"] != after["weight"]:
            return f"an adapter's weight was {before['weight']:g} and is {after['weight']:g}"
        if told := _other_files("adapter", before["files"], after["files"]):
            return told
    recipe = then.get("recipe", {})
    for name in recipe.keys() | now["recipe"].keys():
        if recipe.get(name) != now["recipe"].get(name):
            if name in (*PATHS, "calibrate"):
                return f"{name} has changed"
            return f"{name} was {recipe.get(name)!r} and is {now['recipe'].get(name)!r}"
    return None


def _other_files(what: str, then: Sequence[Any], now: Sequence[Any]) -> str | None:
    before, after = ({file["name"]: file for file in files} for files in (then, now))
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            return f"the {what}'s {name} is gone"
        if name not in before:
            return f"the {what} has a new {name}"
        old, new = before[name], after[name]
        if old["size"] != new["size"]:
            return f"the {what}'s {name} had {old['size']} bytes and has {new['size']}"
        if old != new:
            return f"the {what}'s {name} has changed"
    return None
