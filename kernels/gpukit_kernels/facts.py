"""What is known of each quant type without its functions, as a table: importing it needs no torch.

A new type is a line here and a file in `quants/`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gpukit_kernels.errors import QuantError

# Whose bytes gpukit's are, and whose mixes of types and statistics.
MATCHED = "llama.cpp 0c1e5709"


@dataclass(frozen=True)
class TypeFacts:
    """One type of GGUF data, as numbers.

    `block` values take `nbytes` bytes; `encodable` types can be written, all can be read;
    `takes_importance` says whether importance changes a type's bytes, `needs_importance` whether
    there are no bytes without, `row_mean` whether for that it looks at the mean squares of rows.
    """

    name: str
    id: int
    block: int
    nbytes: int
    encodable: bool = True
    takes_importance: bool = False
    needs_importance: bool = False
    row_mean: bool = False

    def row_bytes(self, n: int) -> int:
        """Bytes of a row of `n` values; `QuantError` when blocks do not divide it."""
        if n % self.block:
            raise QuantError(f"rows of {n} are no multiple of {self.block} ({self.name})")
        return n // self.block * self.nbytes


_ROWS = (
    TypeFacts("F32", 0, 1, 4),
    TypeFacts("F16", 1, 1, 2),
    TypeFacts("Q4_0", 2, 32, 18, takes_importance=True, row_mean=True),
    TypeFacts("Q4_1", 3, 32, 20, takes_importance=True, row_mean=True),
    TypeFacts("Q5_0", 6, 32, 22, takes_importance=True, row_mean=True),
    TypeFacts("Q5_1", 7, 32, 24, takes_importance=True, row_mean=True),
    TypeFacts("Q8_0", 8, 32, 34),
    TypeFacts("Q2_K", 10, 256, 84, takes_importance=True),
    TypeFacts("Q3_K", 11, 256, 110, takes_importance=True),
    TypeFacts("Q4_K", 12, 256, 144, takes_importance=True),
    TypeFacts("Q5_K", 13, 256, 176, takes_importance=True),
    TypeFacts("Q6_K", 14, 256, 210, takes_importance=True),
    TypeFacts("IQ2_XXS", 16, 256, 66, takes_importance=True, needs_importance=True),
    TypeFacts("IQ2_XS", 17, 256, 74, takes_importance=True, needs_importance=True),
    TypeFacts("IQ3_XXS", 18, 256, 98, takes_importance=True),
    TypeFacts("IQ1_S", 19, 256, 50, takes_importance=True, needs_importance=True),
    TypeFacts("IQ4_NL", 20, 32, 18, takes_importance=True),
    TypeFacts("IQ3_S", 21, 256, 110, takes_importance=True),
    TypeFacts("IQ2_S", 22, 256, 82, takes_importance=True),
    TypeFacts("IQ4_XS", 23, 256, 136, takes_importance=True),
    TypeFacts("IQ1_M", 29, 256, 56, takes_importance=True),
    TypeFacts("BF16", 30, 1, 2),
    TypeFacts("TQ1_0", 34, 256, 54),
    TypeFacts("TQ2_0", 35, 256, 66),
    TypeFacts("MXFP4", 39, 32, 17),
    TypeFacts("NVFP4", 40, 64, 36),
)
FACTS: Mapping[str, TypeFacts] = MappingProxyType({row.name: row for row in _ROWS})
"""Name as GGUF spells it -> facts, in the order of ids."""


def type_facts() -> Mapping[str, TypeFacts]:
    """`FACTS`: of every type in the table."""
    return FACTS
