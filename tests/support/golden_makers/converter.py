"""What llama.cpp's converter makes of the checkpoints in tests/support/forms.py: converter.json.

form -> fields    [[key, type, value or, for long ones, a digest], ...] of the first outtype
        tensors   outtype -> [[name, type, dimensions, digest], ...]

Needs llama.cpp's source: GPUKIT_LLAMA_CPP, a folder with convert_hf_to_gguf.py.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from support.forms import FORMS, build

from gpukit.formats.gguf_reader import GGUFFile

RUNNER = Path(__file__).resolve().parent.parent / "llama_cpp_converter.py"
LONG = 100


def make(folder: Path) -> list[Path]:
    """Write converter.json into `folder`; its path."""
    path = folder / "converter.json"
    with tempfile.TemporaryDirectory() as scratch:
        found = collect(Path(scratch), Path(os.environ["GPUKIT_LLAMA_CPP"]))
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in found.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return [path]


def collect(scratch: Path, tree: Path) -> dict[str, Any]:
    """What the converter in `tree` makes of every form."""
    folders = {name: build(name, scratch) for name in FORMS}
    jobs = [
        (folders[name], scratch / f"{name}-{kind}.gguf", kind)
        for name, form in FORMS.items()
        for kind in form.types
    ]
    convert(tree, jobs)
    return {
        name: described({kind: scratch / f"{name}-{kind}.gguf" for kind in form.types})
        for name, form in FORMS.items()
    }


def convert(
    tree: Path,
    jobs: Sequence[tuple[Path, Path, str]],
    pre: Mapping[Path, str | None] | None = None,
    words: Sequence[str] = (),
) -> None:
    """Run the converter on (folder, out, outtype) each; `pre` names pre-tokenizers of folders that
    it does not recognise, `words` are more of its arguments. `RuntimeError` with what it said."""
    names = pre or {}
    request = json.dumps(
        [str(tree), list(words), *([str(a), str(b), c, names.get(a)] for a, b, c in jobs)]
    )
    done = subprocess.run(
        [sys.executable, RUNNER], input=request, text=True, capture_output=True, check=False
    )
    if missing := [out for _, out, _ in jobs if not out.exists()]:
        raise RuntimeError(f"{missing[0].name} was not made:\n{done.stderr[-2000:]}")


def described(files: Mapping[str, Path]) -> dict[str, Any]:
    """The entry for one form, from its files by outtype."""
    tensors = {}
    fields: list[list[Any]] = []
    for kind, path in files.items():
        with GGUFFile(path) as file:
            fields = fields or [[f.key, _type(f), _short(f.value)] for f in file.fields.values()]
            tensors[kind] = [
                [info.name, info.type, list(info.ne), _digest(file.read(info).tobytes())]
                for info in file.tensors.values()
            ] + [file.get("general.file_type")]
    return {"fields": fields, "tensors": tensors}


def _type(field: Any) -> str:
    return field.type.name + (f" of {field.item.name}" if field.item is not None else "")


def _short(value: Any) -> Any:
    text = json.dumps(value)
    return value if len(text) <= LONG else _digest(text.encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:24]
