"""What is asked for of weights that come into the store."""

from dataclasses import dataclass

from gpukit.events import Report
from gpukit.formats.imatrix import Imatrix
from gpukit.planning.overrides import Overrides
from gpukit.sources.converter_process import Converter
from gpukit.sources.merged import Merge
from gpukit_kernels.devices import Device


@dataclass(frozen=True)
class Wishes:
    """How weights are converted: the file type wanted (None: the source's own), who hears of it,
    the device, the bound on host memory in bytes, the pre-tokenizer where none is recognised, the
    importance weights, the user's types of tensors and whether blocks may become others, the
    adapters that are merged on the way, whether the metadata says what the weights are made from,
    llama.cpp's converter where it shall read a folder, whether a GGUF taken as it is may be linked,
    and of a folder whether layers that guess further tokens come alone, or (False) not at all.
    """

    file_type: str | None
    report: Report
    device: Device = "auto"
    budget: int = 4 << 30
    pre: str | None = None
    imatrix: Imatrix | None = None
    overrides: Overrides | None = None
    allow_requantize: bool = False
    merge: Merge | None = None
    provenance: bool = False
    converter: Converter | None = None
    link: bool = False
    mtp: bool | None = None
