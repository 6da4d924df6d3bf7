"""GGUFs beside the weights, taken as they are: what DRAFT names, and FROM behind the first one."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from gpukit.conversion.admission import check_gguf, is_projector
from gpukit.conversion.new_adapters import CopiedFile
from gpukit.errors import ArgumentError, ModelfileError, NotFoundError
from gpukit.events import Report
from gpukit.formats.gguf_reader import is_gguf
from gpukit.formats.paths import expanded
from gpukit.store.manifest import LAYER_PREFIX, Layer
from gpukit.store.modelfile import Modelfile

PROJECTOR, DRAFT = LAYER_PREFIX + "projector", LAYER_PREFIX + "draft"


def check_beside(
    modelfile: Modelfile, source: object, report: Report
) -> tuple[tuple[CopiedFile, ...], tuple[CopiedFile, ...]]:
    """The projectors and the drafts of `modelfile`, whose model is `source`.

    NotFoundError for a file that is not there, ModelfileError for one that is no GGUF or has
    another part to play.
    """
    projectors = []
    for word in modelfile.projectors:
        path = _file("FROM", word, modelfile.folder)
        if not is_projector(path):
            raise ModelfileError(
                f"FROM {word}: a second model (the first is {modelfile.source}): one FROM names "
                "the model, or any part of a split one, and further ones its projectors"
            )
        projectors.append(CopiedFile(path, PROJECTOR, report))
    drafts = []
    for word in modelfile.drafts:
        path = _file("DRAFT", word, modelfile.folder)
        if isinstance(source, Path) and path.samefile(source):
            raise ModelfileError(
                f"DRAFT must not reference the same local path as FROM: {path.absolute()}"
            )
        try:
            check_gguf(path)
        except ArgumentError as error:
            raise ModelfileError(f"DRAFT {error}") from None
        drafts.append(CopiedFile(path, DRAFT, report))
    return tuple(projectors), tuple(drafts)


def without_known(inherited: Sequence[Layer], new: Iterable[Layer]) -> tuple[Layer, ...]:
    """All layers, of the new ones those that are not there already."""
    known = {(layer.media_type, layer.digest) for layer in inherited}
    return (*inherited, *(each for each in new if (each.media_type, each.digest) not in known))


def _file(command: str, word: str, folder: Path) -> Path:
    path = folder.absolute() / expanded(word)
    if not path.exists():
        raise NotFoundError(f"{command} {word}: {path}: no such file; a GGUF is wanted here")
    if not path.is_file() or not is_gguf(path):
        raise ModelfileError(f"{command} {word}: no GGUF file: make one of it with gpukit convert")
    return path
