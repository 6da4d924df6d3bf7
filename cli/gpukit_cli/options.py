"""What several commands take, declared once: name, placeholder, help and what a shell completes.

Nothing here loads torch: every command's parsing imports it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from gpukit.formats.file_types import ALIASES, FILE_TYPES

FILE_TYPE_NAMES = ", ".join(FILE_TYPES)
LAYOUTS = ("peft", "peft-0.18", "unsloth")
DEVICES = ("auto", "cpu", "cuda", "cuda:0", "cuda:0,cuda:1")


def file_types(incomplete: str) -> list[str]:
    """The file types that `incomplete` begins, in any case."""
    return _begun(incomplete, [*FILE_TYPES, *ALIASES])


def tensor_types(incomplete: str) -> list[str]:
    """The types of tensors that can be written and that `incomplete` begins, in any case."""
    from gpukit_kernels import type_facts

    return _begun(incomplete, (name for name, facts in type_facts().items() if facts.encodable))


def devices(incomplete: str) -> list[str]:
    """What --device may say, as far as parsing can know it."""
    return _begun(incomplete, DEVICES)


def layouts(incomplete: str) -> list[str]:
    """The layouts of experts that `incomplete` begins."""
    return _begun(incomplete, LAYOUTS)


def pre_tokenizers(incomplete: str) -> list[str]:
    """The names of pre-tokenizers that `incomplete` begins."""
    from gpukit.tokenizer.pretokenizers import PRE_TOKENIZERS

    return _begun(incomplete, PRE_TOKENIZERS)


def stored_names(incomplete: str) -> list[str]:
    """The names in the store that `incomplete` begins, in any case.

    Where there is none, the shell offers files.
    """
    from gpukit.errors import GpukitError
    from gpukit.store import Store

    try:
        names = [name.display.removesuffix(":latest") for name in Store().names()]
    except (GpukitError, OSError):
        return []
    return _begun(incomplete, names)


def _begun(incomplete: str, words: Iterable[str]) -> list[str]:
    """The words that `incomplete` begins in any case, in its spelling: shells compare letters."""
    size = len(incomplete)
    return [incomplete + word[size:] for word in words if word[:size].lower() == incomplete.lower()]


Input = Annotated[
    str,
    typer.Argument(
        metavar="IN",
        help="A model folder, a GGUF, a name in the store, or hf.co/org/name.",
        autocompletion=stored_names,
    ),
]
StoredName = Annotated[
    str,
    typer.Argument(metavar="NAME", help="A model in the store.", autocompletion=stored_names),
]
Device = Annotated[
    str,
    typer.Option(
        "--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N.", autocompletion=devices
    ),
]
Devices = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="auto, cpu, cuda, cuda:N, or several GPUs: cuda:0,cuda:1.",
        autocompletion=devices,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        help="Print errors only, and what is asked for: an answer, a measurement, a plan, --json.",
    ),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="DIR[:WEIGHT]",
        help="A LoRA adapter: a folder or file of PEFT or MLX, a GGUF, or hf.co/org/name; may be "
        "repeated.",
        show_default="none",
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse an adapter that names another base model.")
]
MoeLayout = Annotated[
    str | None,
    typer.Option(
        "--moe-layout",
        metavar="LAYOUT",
        help=f"How an adapter's tensors of experts lie: {', '.join(LAYOUTS)}.",
        show_default="what their shapes tell",
        autocompletion=layouts,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")]
ImatrixFile = Annotated[
    Path | None,
    typer.Option(
        "--imatrix",
        metavar="FILE",
        help="Importance matrix of llama-imatrix, .gguf or .dat.",
        show_default="none",
    ),
]
TensorTypes = Annotated[
    list[str] | None,
    typer.Option(
        "--tensor-type",
        metavar="REGEX=TYPE",
        help="Type of the tensors that match; may be repeated, and the first match wins.",
        show_default="the mix's",
    ),
]
AllowRequantize = Annotated[
    bool, typer.Option("--allow-requantize", help="Take quantised tensors, which loses more.")
]
Calibrate = Annotated[
    Path | None,
    typer.Option(
        "--calibrate",
        metavar="TEXT",
        help="Instead of --imatrix: the model reads this text first, in chunks of 512 tokens.",
        show_default="none",
    ),
]
TargetBpw = Annotated[
    float | None,
    typer.Option(
        "--target-bpw",
        metavar="BITS",
        help="Instead of a type: the types of tensors that lose least within BITS per weight, all "
        "tensors counted.",
        show_default="none",
    ),
]
TargetSize = Annotated[
    str | None,
    typer.Option(
        "--target-size",
        metavar="SIZE",
        help="The same within a file of SIZE, as 500M or 5.5G.",
        show_default="none",
    ),
]
Like = Annotated[
    Path | None,
    typer.Option(
        "--like",
        metavar="FILE",
        help="Instead of a type: each tensor's type as in another GGUF.",
        show_default="none",
    ),
]
Pre = Annotated[
    str | None,
    typer.Option(
        "--pre",
        metavar="NAME",
        help="Pre-tokenizer of a model folder, such as llama-bpe, where none is recognised.",
        show_default="the one recognised",
        autocompletion=pre_tokenizers,
    ),
]
Mtp = Annotated[
    bool | None,
    typer.Option(
        "--mtp/--no-mtp",
        help="Of a model folder the layers alone that guess further tokens, or all but those.",
        show_default="all layers",
    ),
]
Provenance = Annotated[
    bool,
    typer.Option(
        "--provenance",
        help="Note in the metadata what the file was made from: source, digests, adapters, recipe.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with a run of the same that was killed, and let a later one go on with this.",
    ),
]
Hub = Annotated[
    bool,
    typer.Option("--hub", help="The model is an id on the Hugging Face hub, such as org/name."),
]
SplitMaxSize = Annotated[
    str | None,
    typer.Option(
        "--split-max-size",
        metavar="SIZE",
        help="Split into files with at most SIZE of data, as 500M or 2G.",
        show_default="one file",
    ),
]
