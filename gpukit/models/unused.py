"""Which tensors of a file take no part in a pass, by its metadata alone."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from gpukit.formats.gguf_fields import layer_of

# What a layer that has the keys and values of another has no use for, where a file holds it.
KEYS_AND_VALUES = ("attn_k.weight", "attn_v.weight", "attn_k_norm.weight")
# What a file of the layers alone that guess further tokens has of all others.
ENDS = ("token_embd.weight", "output_norm.weight", "output.weight")


@dataclass(frozen=True)
class Unused:
    """The layers that guess further tokens, and those with keys and values of others."""

    guessing: range = range(0)
    sharing: range = range(0)

    def guesses(self, name: str) -> bool:
        """Whether the tensor `name` belongs to a layer that guesses further tokens."""
        return layer_of(name) in self.guessing

    def has(self, name: str) -> bool:
        """Whether no pass has a use for the tensor `name`."""
        return self.guesses(name) or (
            name.endswith(KEYS_AND_VALUES) and layer_of(name) in self.sharing
        )

    def alone(self, names: Iterable[str]) -> bool:
        """Whether `names` are those of a file with the layers alone that guess."""
        inside = [name for name in names if name not in ENDS]
        return bool(inside) and all(map(self.guesses, inside))


def unused_of(get: Callable[[str], Any]) -> Unused:
    """What the metadata of a file, by `get`, say of it; nothing where they make no sense, which is
    for those to tell who read a whole model."""
    at = get("general.architecture")
    count, guessing, sharing = (
        value if type(value := get(f"{at}.{key}")) is int else 0
        for key in ("block_count", "nextn_predict_layers", "attention.shared_kv_layers")
    )
    layers = count - guessing
    return Unused(range(layers, count), range(layers - sharing, layers))
