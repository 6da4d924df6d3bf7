"""A model within a number of bits per weight, or of bytes: what may become what, and the choice.

Bits per weight are those that a file shows: 8 * the bytes of all tensors / all weights, also of
the tensors that keep their type. A size is that of the whole file, with metadata and padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from gpukit.errors import ArgumentError
from gpukit.formats.file_types import FILE_TYPES
from gpukit.formats.gguf_fields import DEFAULT_ALIGNMENT, TensorSpec, aligned
from gpukit.formats.imatrix import Floats
from gpukit.models.unused import unused_of
from gpukit.planning.budget import Item, Option, spend
from gpukit.planning.importance import importance_of
from gpukit.planning.mix_rules import AT_LEAST_Q8_0, EMBEDDINGS, OUTPUT
from gpukit.planning.mixes import choose, unfitting
from gpukit.planning.overrides import Overrides
from gpukit.planning.plan import Options, QuantizePlan
from gpukit.planning.planner import plan_quantize
from gpukit.planning.templates import file_type_for
from gpukit.planning.untouched import quantizable
from gpukit.sources.base import Source
from gpukit_kernels import type_facts

# What a tensor may become besides what it is, where the blocks fit its rows.
TYPES = (
    "Q2_K", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_K", "Q4_1", "Q5_0", "Q5_K", "Q5_1", "Q6_K",
    "Q8_0", "F16",
)  # fmt: skip
AT_LEAST = ("Q8_0", "F16")
# The plan that what is not asked about is taken from; its own types are all exchanged.
BASE = "Q4_K_M"
# How much more an error of the head counts than one of a layer, whose output is a part of a sum.
HEAD = 3.0


@dataclass(frozen=True)
class Candidate:
    """A tensor whose type is free: its place in the source, the types that it may become, and the
    importance of its columns, float32 `[matrices * ne0]`, None without."""

    index: int
    spec: TensorSpec
    types: tuple[str, ...]
    importance: Floats | None


def candidates(source: Source, options: Options) -> list[Candidate]:
    """The tensors of `source` whose types neither a rule nor an option of the user decides.

    `ArgumentError` for what could not become a file whatever the types, and for a source that is
    quantised already if that is not allowed.
    """
    plain = replace(options, target_bpw=None, target_size=None)
    plan_quantize(source, BASE, plain)
    choices = choose(source.tensors, source.get, FILE_TYPES[BASE], options.overrides)
    arch, unused = source.get("general.architecture", ""), unused_of(source.get)
    found = []
    for index, (tensor, choice) in enumerate(zip(source.tensors, choices, strict=True)):
        if choice.option or not quantizable(tensor, arch):
            continue
        held = any(part in tensor.name for part in AT_LEAST_Q8_0.get(arch, ()))
        kinds = [kind for kind in (AT_LEAST if held else TYPES) if not unfitting(tensor, kind)]
        facts = type_facts().get(tensor.type)
        if tensor.type not in kinds and facts is not None and facts.encodable:
            kinds.append(tensor.type)
        taker = TensorSpec(tensor.name, tensor.ne, "Q4_0")  # a type that takes importance
        importance = importance_of(taker, options.imatrix, unused) if options.imatrix else None
        found.append(Candidate(index, tensor, tuple(kinds), importance))
    return found


def check_target(source: Source, options: Options, free: Sequence[Candidate]) -> None:
    """`ArgumentError` with the range that is possible where the types of `free` cannot meet the
    target of `options`, whatever they lose."""
    _room(source, options, free)


def plan_target(
    source: Source,
    options: Options,
    free: Sequence[Candidate],
    losses: Sequence[Sequence[float]],
) -> QuantizePlan:
    """The plan that keeps within `options.target_bpw` or `target_size` and loses least: `losses`
    has what each of `free` would lose as each of its types. Errors as `check_target`."""
    items = [
        Item(c.spec.name, tuple(
            Option(kind, _padded(c.spec, kind, options), loss * _reach(source, c.spec))
            for kind, loss in zip(c.types, lost, strict=True)))
        for c, lost in zip(free, losses, strict=True)
    ]  # fmt: skip
    types = spend(items, _room(source, options, free))
    overrides = replace(
        options.overrides or Overrides(), exact=types, exact_option=options.target or ""
    )
    file_type = file_type_for(source.tensors, types)
    told = replace(options, target_bpw=None, target_size=None, overrides=overrides)
    plan = plan_quantize(source, file_type.name, told)
    bits = 8 * sum(spec.nbytes for spec in plan.specs) / _weights(plan)
    title = f"quantizing {source.label} model to {bits:.3f} bits per weight"
    return replace(plan, title=title, notes=(_note(options, free),))


def _room(source: Source, options: Options, free: Sequence[Candidate]) -> int:
    """Bytes that the target of `options` leaves for `free`; errors as `check_target`."""
    base = plan_quantize(source, BASE, replace(options, target_bpw=None, target_size=None))
    names = {candidate.spec.name for candidate in free}
    fixed = sum(_padded(s, s.type, options) for s in base.specs if s.name not in names)
    if options.target_size is not None:
        fixed += base.size - sum(_padded(spec, spec.type, options) for spec in base.specs)
        total = options.target_size
    else:
        assert options.target_bpw is not None
        total = int(options.target_bpw * _weights(base) / 8)
    sizes = [[_padded(c.spec, kind, options) for kind in c.types] for c in free]
    ends = (fixed + sum(map(min, sizes)), fixed + sum(map(max, sizes)))
    if not ends[0] <= total <= ends[1]:
        raise ArgumentError(_unreachable(source, options, ends, _weights(base)))
    return total - fixed


def _weights(plan: QuantizePlan) -> int:
    return sum(prod(spec.ne) for spec in plan.specs)


def _reach(source: Source, spec: TensorSpec) -> float:
    """How much a share that a tensor loses counts: the number of its weights that a token meets,
    of experts those that are used; for the head, behind which nothing evens errors out, more."""
    arch = source.get("general.architecture", "")
    used, experts = (source.get(f"{arch}.expert_{key}") for key in ("used_count", "count"))
    tied = all(tensor.name != OUTPUT for tensor in source.tensors)
    met = spec.n_elements * (HEAD if spec.name == (EMBEDDINGS[0] if tied else OUTPUT) else 1.0)
    if "_exps." in spec.name and isinstance(used, int) and isinstance(experts, int) and experts:
        return met * min(used / experts, 1.0)
    return met


def _padded(spec: TensorSpec, kind: str, options: Options) -> int:
    """Bytes of a tensor as `kind`; of those that count for a file's size also the padding."""
    nbytes = replace(spec, type=kind).nbytes
    return aligned(nbytes, DEFAULT_ALIGNMENT) if options.target_size is not None else nbytes


def _note(options: Options, free: Sequence[Candidate]) -> str:
    """How the types were chosen, in a line."""
    weighted = sum(candidate.importance is not None for candidate in free)
    if options.imatrix is None:
        how = "without importance (--imatrix)"
    else:
        how = f"encoded by {options.imatrix.path} for {weighted} of {len(free)} tensors"
    return f"{options.target}: types chosen for the least squared error, {how}"


def _unreachable(source: Source, options: Options, ends: tuple[int, int], weights: int) -> str:
    wish = options.target
    if options.target_size is not None:
        wish = f"--target-size of {options.target_size:,} bytes"
        span = f"from {ends[0]:,} to {ends[1]:,} bytes are"
    else:
        # Rounded inwards, so that both can be asked for.
        low, high = (8 * end / max(weights, 1) for end in ends)
        span = f"from {-int(-low * 100 // 1) / 100:.2f} to {int(high * 100) / 100:.2f} are"
    return f"{source.path}: {wish} cannot be reached: {span} possible"
