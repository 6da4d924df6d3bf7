"""What a measurement is asked for, and what can be wrong with it whatever the models are."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import gpukit_kernels as kernels
from gpukit.conversion.checks import check_plan
from gpukit.errors import ArgumentError
from gpukit.evaluation.windows import NUM_CTX, NUM_CTX_OPTION, check_window, read_text
from gpukit.formats.logits import LogitsFile, is_logits
from gpukit.formats.outputs import check_output
from gpukit.recipes.chosen import Word
from gpukit.sources.merged import Merge
from gpukit_kernels.devices import Device

# What a file system takes for one name.
LONGEST_NAME = 255


@dataclass(frozen=True)
class Asked:
    """The arguments of `gpukit.perplexity` and `gpukit.perplexities`. `against_merge` are adapters
    of the reference, which is quantised to `against_type` in memory, if that is told; `option`
    is what makes windows smaller, for messages."""

    models: tuple[str | Path, ...]
    text: str | Path | None
    types: tuple[str, ...]
    num_ctx: int | None
    chunks: int | None
    stride: int | None
    against: str | Path | None
    adapters: Sequence[Word] | str | Path
    strict: bool
    moe_layout: str | None
    journal: str | Path | None
    pre: str | None
    hub: bool
    device: Device
    save_logits: str | Path | None = None
    save_report: str | Path | None = None
    imatrix: str | Path | None = None
    against_merge: Merge | None = None
    against_type: str | None = None
    option: str = NUM_CTX_OPTION


def check(asked: Asked, stack: ExitStack) -> LogitsFile | None:
    """The logits file that the models stand beside, if one is asked for; `stack` closes it.

    Raises `ArgumentError` for what cannot be, and what the outputs and the file raise.
    """
    if not asked.models:
        raise ArgumentError("no model; name one at least")
    if asked.types and len(asked.models) > 1:
        raise ArgumentError(f"types are of one model, and {len(asked.models)} are named")
    if asked.imatrix is not None and not asked.types:
        raise ArgumentError("an importance matrix is for types; name the types, or leave it out")
    for kind in asked.types:
        check_plan(kind)
    check_plan(None, asked.pre)
    if len(kernels.device_list(asked.device)) > 1 and asked.types:
        raise ArgumentError(f"types are made on one device, and {asked.device} are named")
    check_window(asked.num_ctx if asked.num_ctx is not None else NUM_CTX, asked.chunks,
                 asked.stride)  # fmt: skip
    if asked.save_logits is not None:
        _check_save(asked)
    if asked.journal is not None:
        check_output(Path(asked.journal))
    if asked.save_report is not None:
        _check_report(asked, Path(asked.save_report))
    if asked.against is None or not is_logits(Path(asked.against)):
        return None
    file = stack.enter_context(LogitsFile(Path(asked.against)))
    if asked.stride is not None:
        raise ArgumentError(
            f"{file.path}: a logits file has the second half of each window: leave out stride"
        )
    if asked.num_ctx not in (None, file.shape.num_ctx):
        raise ArgumentError(
            f"{file.path}: made with windows of {file.shape.num_ctx} tokens, num_ctx is "
            f"{asked.num_ctx}; leave it out, or make the file again"
        )
    return file


def _inputs(asked: Asked) -> list[Path]:
    inputs = [Path(word) for word in (*asked.models, asked.against) if word is not None]
    return [*inputs, asked.text] if isinstance(asked.text, Path) else inputs


def _check_report(asked: Asked, path: Path) -> None:
    imatrix = [Path(asked.imatrix)] if asked.imatrix is not None else []
    check_output(path, [*_inputs(asked), *imatrix])
    for other in (asked.journal, asked.save_logits):
        if other is not None and path.resolve() == Path(other).resolve():
            raise ArgumentError(f"{path}: two outputs of one name; write the report to another")


def _check_save(asked: Asked) -> None:
    check_output(Path(str(asked.save_logits)), _inputs(asked))
    if asked.stride is not None:
        raise ArgumentError("a logits file has the second half of each window: leave out stride")
    if asked.journal is not None:
        raise ArgumentError(
            "a logits file is written whole or not at all, so nothing goes on from a journal; "
            "leave out one of both"
        )


def given_text(asked: Asked, file: LogitsFile | None) -> str | None:
    """The text itself; None where only the logits `file` has one, else that is an error."""
    if asked.text is None:
        if file is None:
            raise ArgumentError("no text; give a file of one with --file, such as -f wiki.test.raw")
        return None
    if isinstance(asked.text, Path):
        return read_text(asked.text)
    if len(asked.text) <= LONGEST_NAME and "\0" not in asked.text and Path(asked.text).is_file():
        raise ArgumentError(
            f"{asked.text}: the name of a file, not its text; for that give Path({asked.text!r})"
        )
    return asked.text
