"""gpukit: from a Hugging Face checkpoint to a quantised, checked GGUF in one pass.

    convert, quantize, plan     one file from a model
    merge                       the same, or a folder, with adapters merged
    convert_many, merge_many,   many files of one model from one reading
    quantize_many, plan_many
    write_adapter               a GGUF LoRA adapter from one of PEFT, MLX or llama.cpp
    extract_adapter             a PEFT adapter from a tuned model and its base
    load                        a model that speaks
    Session                     a conversation with one
    perplexity, perplexities    how well models expect a text, and what quantising them cost
    inspect                     what is inside a file or a folder
    imatrix                     how important the columns of a model's weights are
    batch, plan_batch,          many files from a plan: made, looked at before, looked at meanwhile
    batch_status
    verify                      whether a GGUF is what its source gives
    Store, Modelfile            the models on disk, laid out as Ollama's
    Options, make_overrides     what a quantisation may be told besides a type
    Converter                   a checkout of llama.cpp whose converter reads a folder
    Status, Step, Warned        what a `report` hears
    GpukitError                 the root of all errors; `gpukit.errors` draws the tree

A model is what the command line takes: a path, a name in the store, an id of the Hugging Face hub.
Names are imported when they are first used, so that torch is, too, only where something needs it.
"""

from typing import TYPE_CHECKING

from gpukit.version import VERSION
from gpukit_kernels.lazy import lazily

if TYPE_CHECKING:
    from gpukit.adapters.mixing import Combining as Combining
    from gpukit.batches.batch import (
        batch as batch,
        batch_status as batch_status,
        plan_batch as plan_batch,
    )
    from gpukit.batches.result import BatchResult as BatchResult
    from gpukit.conversion.run import Result as Result
    from gpukit.errors import (
        AdapterError as AdapterError,
        ArgumentError as ArgumentError,
        CheckpointError as CheckpointError,
        DiskError as DiskError,
        FormatError as FormatError,
        GGUFError as GGUFError,
        GpukitError as GpukitError,
        HubError as HubError,
        ModelfileError as ModelfileError,
        NotFoundError as NotFoundError,
        PytorchError as PytorchError,
        QuantError as QuantError,
        RegistryError as RegistryError,
        SafetensorsError as SafetensorsError,
        StoreError as StoreError,
        TokenizerError as TokenizerError,
    )
    from gpukit.events import (
        Report as Report,
        Status as Status,
        Step as Step,
        Warned as Warned,
    )
    from gpukit.generation.generate import (
        Generation as Generation,
        Stream as Stream,
    )
    from gpukit.generation.model import Model as Model
    from gpukit.generation.session import Session as Session
    from gpukit.planning.overrides import make_overrides as make_overrides
    from gpukit.planning.plan import Options as Options
    from gpukit.recipes.adapter import (
        AdapterResult as AdapterResult,
        write_adapter as write_adapter,
    )
    from gpukit.recipes.convert import convert as convert, quantize as quantize
    from gpukit.recipes.extract import (
        Extraction as Extraction,
        extract_adapter as extract_adapter,
    )
    from gpukit.recipes.imatrix import (
        ImatrixResult as ImatrixResult,
        imatrix as imatrix,
    )
    from gpukit.recipes.inspect import (
        Inspection as Inspection,
        inspect as inspect,
    )
    from gpukit.recipes.load import load as load
    from gpukit.recipes.many import (
        Plans as Plans,
        convert_many as convert_many,
        merge_many as merge_many,
        plan_many as plan_many,
        quantize_many as quantize_many,
    )
    from gpukit.recipes.merge import merge as merge
    from gpukit.recipes.perplexity import (
        Perplexity as Perplexity,
        perplexities as perplexities,
        perplexity as perplexity,
    )
    from gpukit.recipes.plan import Plan as Plan, plan as plan
    from gpukit.recipes.share import Transfer as Transfer
    from gpukit.recipes.store import Store as Store
    from gpukit.recipes.verified import Verification as Verification
    from gpukit.recipes.verify import verify as verify
    from gpukit.sources.converter_process import Converter as Converter
    from gpukit.store.modelfile import Modelfile as Modelfile

__version__ = VERSION

# The module of each name.
_MODULES = {
    "adapters.mixing": ["Combining"],
    "batches.batch": ["batch", "batch_status", "plan_batch"],
    "batches.result": ["BatchResult"],
    "conversion.run": ["Result"],
    "errors": [
        "AdapterError",
        "ArgumentError",
        "CheckpointError",
        "DiskError",
        "FormatError",
        "GGUFError",
        "GpukitError",
        "HubError",
        "ModelfileError",
        "NotFoundError",
        "PytorchError",
        "QuantError",
        "RegistryError",
        "SafetensorsError",
        "StoreError",
        "TokenizerError",
    ],
    "events": ["Report", "Status", "Step", "Warned"],
    "generation.generate": ["Generation", "Stream"],
    "generation.model": ["Model"],
    "generation.session": ["Session"],
    "planning.overrides": ["make_overrides"],
    "planning.plan": ["Options"],
    "recipes.adapter": ["AdapterResult", "write_adapter"],
    "recipes.convert": ["convert", "quantize"],
    "recipes.extract": ["Extraction", "extract_adapter"],
    "recipes.imatrix": ["ImatrixResult", "imatrix"],
    "recipes.inspect": ["Inspection", "inspect"],
    "recipes.load": ["load"],
    "recipes.many": ["Plans", "convert_many", "merge_many", "plan_many", "quantize_many"],
    "recipes.merge": ["merge"],
    "recipes.perplexity": ["Perplexity", "perplexities", "perplexity"],
    "recipes.plan": ["Plan", "plan"],
    "recipes.share": ["Transfer"],
    "recipes.store": ["Store"],
    "recipes.verified": ["Verification"],
    "recipes.verify": ["verify"],
    "sources.converter_process": ["Converter"],
    "store.modelfile": ["Modelfile"],
}

__all__ = sorted([*(name for names in _MODULES.values() for name in names), "__version__"])

__getattr__, __dir__ = lazily(globals(), _MODULES)
