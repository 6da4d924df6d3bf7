"""Models in several GGUF files, as llama-gguf-split and the converter make them.

Part k of n is `STEM-0000k-of-0000n.gguf`. All metadata stands in the first part; every part has
`split.no` (from 0), `split.count` and `split.tensors.count`, the number of all tensors.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

from gpukit.errors import ArgumentError, GGUFError, one_line
from gpukit.formats import atomic
from gpukit.formats.closing import Closing
from gpukit.formats.gguf_fields import Field, TensorInfo, TensorSpec, i32, u16
from gpukit.formats.gguf_reader import GGUFFile
from gpukit.formats.gguf_writer import GGUFWriter
from gpukit.formats.placed_writers import PlacedWriters

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
MOST_PARTS = 99_999
_NAME = re.compile(r"(?P<stem>.*)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)([KMG]?)B?", re.IGNORECASE)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def part_path(path: Path, number: int, count: int) -> Path:
    """The path of part `number`, from 0, of `count`, of a model called `path`."""
    stem = path.name.removesuffix(".gguf")
    return path.with_name(f"{stem}-{number + 1:05}-of-{count:05}.gguf")


def part_of(name: str) -> tuple[str, int, int] | None:
    """Stem, number from 1 on and count of a file name that is one part's; None for any other."""
    match = _NAME.fullmatch(name)
    return (match["stem"], int(match["no"]), int(match["count"])) if match else None


def parse_size(text: str) -> int:
    """Bytes of `500M`, `5.5G` and the like, decimal as in llama.cpp's tools."""
    match = _SIZE.fullmatch(text.strip())
    size = int(Fraction(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if not size:
        raise ArgumentError(f"{text[:40]!r} is no size; write bytes, or K, M or G as in 500M or 2G")
    return size


class GGUFModel(Closing):
    """A model in one GGUF file or in all parts of a split one, any of which may be named.

    `fields` and `tensors` as in `GGUFFile`, without the keys that only number the parts; `paths`
    are the files, `parts` the number of tensors in each. `GGUFError` for parts that are missing,
    out of place or contradict each other.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        with ExitStack() as stack:
            self._files = [stack.enter_context(GGUFFile(self.path))]
            count = self._number(self._files[0], COUNT, 1)
            if count > 1:
                stack.close()
                self._files = [stack.enter_context(GGUFFile(part)) for part in self._paths(count)]
                self._check(count)
            self.tensors: Mapping[str, TensorInfo] = self._merged()
            if count > 1:
                self._check_total()
            self._stack = stack.pop_all()
        first = self._files[0]
        self.fields: Mapping[str, Field] = {
            key: field for key, field in first.fields.items() if not key.startswith("split.")
        }
        self.paths = tuple(file.path for file in self._files)
        self.parts = tuple(len(file.tensors) for file in self._files)
        self._of = {name: file for file in self._files for name in file.tensors}

    @property
    def is_split(self) -> bool:
        """Whether the model is in several files."""
        return len(self._files) > 1

    def _paths(self, count: int) -> list[Path]:
        named = part_of(self.path.name)
        if named is None:
            raise GGUFError(
                f"{self.path}: one of {count} parts of a model, but not called "
                f"NAME-00001-of-{count:05}.gguf; give the parts their names back"
            )
        stem, _, said = named
        if said != count:
            raise GGUFError(f"{self.path}: its name says {said} parts, its metadata {count}")
        paths = [part_path(self.path.with_name(stem), i, count) for i in range(count)]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise GGUFError(
                f"{missing[0]}: missing; {len(missing)} of the {count} parts of the model are not "
                "there: fetch them"
            )
        return paths

    def _check(self, count: int) -> None:
        for number, file in enumerate(self._files):
            if (said := self._number(file, COUNT, 1)) != count:
                raise GGUFError(f"{file.path}: belongs to {said} parts, the others to {count}")
            if (said := self._number(file, NUMBER, -1)) != number:
                raise GGUFError(
                    f"{file.path}: says that it is part {said + 1}, its name says {number + 1}"
                )

    def _check_total(self) -> None:
        wanted = self._number(self._files[0], TENSORS, len(self.tensors))
        if wanted != len(self.tensors):
            raise GGUFError(
                f"{self._files[0].path}: {wanted} tensors are in the model, its "
                f"{len(self._files)} parts hold {len(self.tensors)}"
            )

    @staticmethod
    def _number(file: GGUFFile, key: str, default: int) -> int:
        value = file.get(key, default)
        if not isinstance(value, int) or not -1 <= value <= 1 << 31:
            raise GGUFError(f"{file.path}: {key} is {one_line(str(value)[:40])}, which no part has")
        if key == COUNT and value > MOST_PARTS:
            raise GGUFError(f"{file.path}: {key} is {value}; {MOST_PARTS} parts are possible")
        return value

    def _merged(self) -> dict[str, TensorInfo]:
        tensors: dict[str, TensorInfo] = {}
        for file in self._files:
            for name, info in file.tensors.items():
                if name in tensors:
                    raise GGUFError(
                        f"{file.path}: {one_line(name)} is in an earlier part, too; fetch it again"
                    )
                tensors[name] = info
        return tensors

    def get(self, key: str, default: Any = None) -> Any:
        """The plain value of a field, `default` where the model has none."""
        field = self.fields.get(key)
        return default if field is None else field.value

    def read_into(self, info: TensorInfo, buffer: memoryview, start: int = 0) -> None:
        """Fill `buffer` with the tensor's bytes from `start` on; safe from several threads."""
        self._of[info.name].read_into(info, buffer, start)

    def close(self) -> None:
        self._stack.close()


def parts_by_size(tensors: Iterable[TensorSpec], limit: int) -> tuple[int, ...]:
    """Tensors in each part, in order, so that data takes `limit` bytes at most where it can.

    A part with a tensor of more than that holds this one alone.
    """
    parts, filled = [0], 0
    for tensor in tensors:
        if parts[-1] and filled + tensor.nbytes > limit:
            parts.append(0)
            filled = 0
        parts[-1] += 1
        filled += tensor.nbytes
    return tuple(parts)


def part_fields(fields: Sequence[Field], number: int, count: int, tensors: int) -> list[Field]:
    """The metadata of part `number`, from 0: the model's in the first, its place in all."""
    place = [
        u16(NUMBER, number),
        u16(COUNT, count),
        i32(TENSORS, tensors),
    ]
    return [*fields, *place] if number == 0 else place


class SplitWriter(PlacedWriters):
    """The parts of a model being written, as one `GGUFWriter`: all appear, or none.

    `parts` is the number of tensors in each, in order; `path` the name of the whole.
    """

    digest: str | None = None

    def __init__(
        self,
        path: Path,
        fields: Sequence[Field],
        tensors: Sequence[TensorSpec],
        parts: Sequence[int],
    ) -> None:
        self.tensors = tuple(tensors)
        ends = list(accumulate(parts))
        super().__init__(
            GGUFWriter(
                part_path(path, number, len(parts)),
                part_fields(fields, number, len(parts), len(tensors)),
                tensors[end - size : end],
            )
            for number, (size, end) in enumerate(zip(parts, ends, strict=True))
        )

    @property
    def paths(self) -> list[Path]:
        """The files, in order."""
        return [writer.path for writer in self.writers]

    def __enter__(self) -> Self:
        atomic.need_room(self.writers[0].path, self.size - self.held)
        return super().__enter__()
