"""Decoders as C: the values of blocks, stored, or multiplied as they come."""

from collections.abc import Callable

import torch
from torch import Tensor

from gpukit_kernels.cpu import emit
from gpukit_kernels.cpu.recording import HERE, defines
from gpukit_kernels.cpu.trace import traced

# What becomes of a decoded value: it is stored; or multiplied with its element of one row of x and
# added to one of four sums; or, where lanes are elements of a row of W, with as many of x, and
# added to a sum of its own.
_SINKS = (
    """\
#define VALUE(n, k, v) store_f(r0 + (k) * LANES + l, v)
#define VALUES_BEGIN
#define VALUES_END
""",
    """\
#undef VALUE
#undef VALUES_BEGIN
#undef VALUES_END
#define VALUE(n, k, v) t##n = fused(v, splat_f(r0[k]), t##n)
#define VALUES_BEGIN vf t0 = load_f(s + l), t1 = {}, t2 = {}, t3 = {};
#define VALUES_END store_f(s + l, (t0 + t1) + (t2 + t3));
""",
    """\
#undef VALUE
#undef VALUES_BEGIN
#undef VALUES_END
#define AT(from, k) (from + (k) * LANES + l)
#define VALUE(n, k, v) store_f(AT(s, k), fused(v, load_f(AT(r0, k)), load_f(AT(s, k))))
#define VALUES_BEGIN
#define VALUES_END
""",
)

# Values of a lane's tile when blocks are decoded.
DECODED = 256
DECODED_LANES = 16


def record_decoder(decode: Callable[[Tensor], Tensor], block: int, nbytes: int) -> str:
    """C of `decode(blocks)` of uint8 `[nbytes, lanes]`, float32 `[block, lanes]`, and of products.

    NotImplementedError for an operation that there is no C for.
    """
    group = DECODED // block
    found = _values("values_of", decode, nbytes, group)
    # Elements of a float type that a word has: words of one row can be the lanes then.
    line = 4 // nbytes if block == 1 and 4 % nbytes == 0 else 0
    facts = {"LANES": DECODED_LANES, "BLOCK": block, "NBYTES": nbytes, "GROUP": group, "LINE": line}
    stored, multiplied, lined = _SINKS
    lines = [lined, _values("line_of", decode, nbytes, line).text] if line else []
    return "\n".join([
        *defines(facts), (HERE / "vectors.h").read_text(), *found.tables.values(),
        stored, found.text, multiplied, found.text.replace("values_of", "dots_of"), *lines,
        (HERE / "decode.h").read_text(), (HERE / "tiles.h").read_text(),
    ])  # fmt: skip


def _values(
    name: str, decode: Callable[[Tensor], Tensor], nbytes: int, group: int
) -> emit.Function:
    """The C function `name` of the values of `group` blocks a lane."""

    def values(blocks: Tensor) -> Tensor:
        parts = [decode(blocks[i * nbytes : (i + 1) * nbytes]) for i in range(group)]
        return torch.cat(parts).contiguous()

    stand = torch.zeros((group * nbytes, DECODED_LANES), dtype=torch.uint8)
    with torch.inference_mode(False):
        graph = traced(values, (stand,), (stand,), "bytes")
    found = emit.function(name, graph, DECODED_LANES, sink=True)
    # What decodes has nothing to keep in between: its scratch is free for sums.
    if found.scratch:
        raise NotImplementedError("a decoder that stores something in between")
    return found
