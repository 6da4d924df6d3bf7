"""What is known of each quant type without its functions: importing it needs no torch.

The rows of `table` say it. Importing them takes seconds, so what they say is left in the cache; a
process that neither computes with tensors nor has to compile anything reads it there.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from types import MappingProxyType

from gpukit_kernels import cache as kept
from gpukit_kernels.errors import QuantError


@dataclass(frozen=True)
class TypeFacts:
    """One type of GGUF data, as numbers.

    `block` values take `nbytes` bytes; `encodable` types can be written, all can be read;
    `takes_importance` says whether importance changes a type's bytes, `row_mean` whether for that
    it looks at the mean squares of rows.
    """

    name: str
    id: int
    block: int
    nbytes: int
    encodable: bool
    takes_importance: bool
    row_mean: bool

    def row_bytes(self, n: int) -> int:
        """Bytes of a row of `n` values; `QuantError` when blocks do not divide it."""
        if n % self.block:
            raise QuantError(f"rows of {n} are no multiple of {self.block} ({self.name})")
        return n // self.block * self.nbytes


@cache
def type_facts() -> Mapping[str, TypeFacts]:
    """Name as GGUF spells it -> facts, in the order of ids: of every type in the table."""
    place = kept.place("types")
    with suppress(OSError, ValueError, TypeError):
        rows = [TypeFacts(**row) for row in json.loads(place.read_bytes())]
        if rows:
            return MappingProxyType({row.name: row for row in rows})
    from gpukit_kernels.table import QUANTS

    found = {name: row.facts for name, row in QUANTS.items()}
    kept.write(place, json.dumps([asdict(row) for row in found.values()]).encode())
    return MappingProxyType(found)
