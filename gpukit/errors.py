"""What gpukit raises for faults that a user can mend.

    GpukitError                  the work failed (exit code 1)
    ├── ArgumentError            the request is wrong: a type, a name, an option (exit code 2)
    │   ├── ModelfileError       a Modelfile that cannot be read as one
    │   └── QuantError           a type, a shape or a device that a kernel cannot take
    ├── FormatError              a file is not what it claims to be
    │   ├── GGUFError
    │   ├── PytorchError
    │   └── SafetensorsError
    ├── CheckpointError          a model folder lacks something or contradicts itself
    │   ├── AdapterError         an adapter lacks something or does not fit its base
    │   └── TokenizerError       a vocabulary that is missing, unknown or contradicts the model
    ├── HubError                 the Hugging Face hub lacks it, refuses it or cannot be reached
    ├── RegistryError            a registry of models does, or sends what cannot be right
    ├── StoreError               a name that is not in the store, a blob that is missing or damaged
    │   └── NotFoundError        a model that is not there: no such path, no such name
    └── DiskError                no room, no permission, a write that failed

Every message is one line: what is wrong, where (file, tensor), both numbers, and the remedy.
The root stands with the kernels, which raise the same errors and know nothing above them.
"""

from gpukit_kernels.errors import (
    ArgumentError,
    GpukitError,
    QuantError,
    counted,
    did_you_mean,
    one_line,
    unlike,
)

__all__ = [
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
    "counted",
    "did_you_mean",
    "one_line",
    "unlike",
]


class ModelfileError(ArgumentError):
    """A Modelfile that cannot be read as one."""


class FormatError(GpukitError):
    """A file is not what it claims to be."""


class GGUFError(FormatError):
    """A GGUF file that is malformed or truncated."""


class PytorchError(FormatError):
    """A file of torch.save that is malformed, or holds more than tensors."""


class SafetensorsError(FormatError):
    """A safetensors file that is malformed or truncated."""


class CheckpointError(GpukitError):
    """A model folder lacks something or contradicts itself."""


class AdapterError(CheckpointError):
    """An adapter lacks something, contradicts itself or does not fit its base."""


class TokenizerError(CheckpointError):
    """A vocabulary that is missing, unknown or contradicts the model."""


class HubError(GpukitError):
    """The Hugging Face hub does not have something, refuses it or cannot be reached."""


class RegistryError(GpukitError):
    """A registry of models lacks something, refuses it, cannot be reached, or sends what cannot be
    right."""


class StoreError(GpukitError):
    """A name that is not in the store, or a blob that is missing or damaged."""


class NotFoundError(StoreError):
    """A model that is not there: neither a file or a folder nor a name in the store."""


class DiskError(GpukitError):
    """The disk refused: no room, no permission, a failed write."""
