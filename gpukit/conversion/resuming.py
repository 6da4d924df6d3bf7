"""The writer of an output that a later run goes on with, where this one is killed.

Pieces are noted in a ledger (`formats.ledger`) once they are synced, every now and then (`noting`).
What is noted is neither read nor computed again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

from gpukit.conversion.audit import Audit, sums_of
from gpukit.conversion.noting import Notes
from gpukit.errors import ArgumentError, CheckpointError, GpukitError
from gpukit.events import Report, Warned
from gpukit.formats.ledger import ANEW, Head, Known, Ledger, Whole, partial_of
from gpukit.formats.placed_writer import PlacedWriter
from gpukit.formats.placed_writers import PlacedWriters
from gpukit.planning.fingerprint import difference
from gpukit.planning.plan import PlannedOutput

# Of values that are not finite: another run would meet them again.
WRONG = CheckpointError


@dataclass(frozen=True)
class Resume:
    """Wish to go on with a killed run of the same: `of` is the fingerprint of what is made. Of
    another one everything is refused, or with `anew` made anew."""

    of: Mapping[str, Any]
    anew: bool = False


class Resuming:
    """The writer of output `out` with what a killed run has left of it, for one file or several.

    Opened, it is in one of the ends: `publish` after `complete`, or `end` after an error.
    `ArgumentError` where the killed run made something else, or another process makes it now. What
    is damaged or gone is made anew, with a warning to `report`. After an error that lies in the
    values everything is removed, after any other (an interrupt, a full disk) kept.
    """

    def __init__(
        self,
        out: Path,
        writer: PlacedWriter | PlacedWriters,
        outputs: Sequence[PlannedOutput],
        resume: Resume,
        report: Report,
        numbers: Sequence[int] | None = None,
        places: Sequence[Path] | None = None,
    ) -> None:
        """`numbers` are those that `outputs` have in the pass, where others are made beside;
        `places` where the files lie until they have their names, if not beside `out`."""
        self._out, self._writer, self._report = out, writer, report
        self._anew_if_changed = resume.anew
        self.numbers = range(len(outputs)) if numbers is None else numbers
        self._files = writer.writers if isinstance(writer, PlacedWriters) else (writer,)
        self._unfinished = places or [partial_of(out, n) for n in range(len(self._files))]
        self._sizes = [output.spec.nbytes for output in outputs]
        sizes = tuple(file.size for file in self._files)
        self._head = Head(resume.of, _layout(self._files, outputs), sizes)
        self._pieces: list[Whole] = []
        self._audit: Audit | None = None
        self._used: list[Whole] = []
        self._done: set[tuple[int, int]] = set()
        self._notes = Notes(self._sync)
        # Whether the ledger is this run's own, of which nothing is worth keeping until it writes.
        self._begun = False

    @property
    def in_order(self) -> bool:
        return self._writer.in_order

    @property
    def files(self) -> Sequence[PlacedWriter]:
        """Those that are written."""
        return self._files

    def open(self) -> None:
        """Lock the ledger, look at what there is, and open the files."""
        self._ledger = Ledger(self._out)
        try:
            self._take_up(self._ledger.known)
            self._writer.__enter__()
        except BaseException:
            self._close(remove=self._begun)
            raise
        self._notes.begin(self._ledger)

    def undo(self) -> None:
        """Leave what there was before `open`; nothing where a killed run has left nothing."""
        self._notes.end()
        self._close(remove=self._begun)

    def _take_up(self, known: Known | None) -> None:
        if known is not None and not self._agrees(known.head):
            known = None
        elif known is None and self._ledger.path.stat().st_size:
            self._anew("its ledger is damaged")
        places = None if known is None else self._places(known)
        if known is None or places is None:
            self._begun = True
            self._ledger.begin(self._head)
            places = self._unfinished
        else:
            self._ledger.go_on()
            self._pieces = known.pieces
        for file, place in zip(self._files, places, strict=True):
            file.keep(place)

    def _agrees(self, head: Head) -> bool:
        """Whether the killed run made the same; `ArgumentError` where that must be so."""
        told = difference(head.of, self._head.of)
        if told is None and (head.layout, head.sizes) != (self._head.layout, self._head.sizes):
            told = "the types that are chosen, or the metadata, have changed"
        if told is not None and not self._anew_if_changed:
            raise ArgumentError(f"{self._out}: {told} since a killed run began it; {ANEW}")
        return told is None

    def _places(self, known: Known) -> Sequence[Path] | None:
        """Where the files are that `known` tells of; None where one is not, or not whole."""
        places = []
        for number, file in enumerate(self._files):
            place = self._unfinished[number]
            if not place.exists() and known.whole is not None:
                # Killed when it had its name.
                place = file.target
                if not place.exists() or place.stat().st_ino != known.whole[number]:
                    place = self._unfinished[number]
            size = place.stat().st_size if place.exists() else None
            if size != file.size:
                if known.pieces:
                    has = "is gone" if size is None else f"has {size} of {file.size} bytes"
                    self._anew(f"{place.name} {has}")
                return None
            places.append(place)
        return places

    def _anew(self, why: str) -> None:
        self._report(Warned(
            f"{self._out}: what a killed run has left cannot be used, {why}: all of it is made anew"
        ))  # fmt: skip

    def take(self, cut: Iterable[tuple[int, int]], audit: Audit) -> set[tuple[int, int]]:
        """Those of the places in `cut`, an output's number in the pass and a position of its data,
        whose pieces are there already. What is written is noted with what `audit` tells of it."""
        self._audit = audit
        local = {number: index for index, number in enumerate(self.numbers)}
        places = {(local[number], at) for number, at in cut if number in local}
        self._done, self._used = self._usable(places)
        for piece in self._used:
            file, index = self._place(piece.tensor)
            file.have(index, piece.start, piece.size)
        return {(self.numbers[tensor], at) for tensor, at in self._done}

    def tell(self, left: set[tuple[int, int]]) -> None:
        """Tell the audit what had been noted of pieces, but for those that are `left` to make."""
        assert self._audit is not None
        again = {number for number, _ in left}
        for piece in self._used:
            number = self.numbers[piece.tensor]
            exact = (piece.tensor, piece.start) in self._done and (number, piece.start) not in left
            if number not in again or exact:
                self._audit.know(number, piece.start, piece.told)

    def _usable(self, cut: set[tuple[int, int]]) -> tuple[set[tuple[int, int]], list[Whole]]:
        """Which of the places in `cut` need no piece, and the noted pieces that see to that."""
        starts: dict[int, list[int]] = {}
        for tensor, at in sorted(cut):
            starts.setdefault(tensor, []).append(at)
        noted: dict[int, dict[int, Whole]] = {}
        for piece in self._pieces:
            if piece.tensor in starts and _is_told(piece.told):
                noted.setdefault(piece.tensor, {})[piece.start] = piece
        done: set[tuple[int, int]] = set()
        used: list[Whole] = []
        for tensor, pieces in noted.items():
            size, places = self._sizes[tensor], starts[tensor]
            found = [pieces[start] for start in sorted(pieces)]
            ends = [0, *(p.start + p.size for p in found)]
            if [p.start for p in found] + [size] == ends:
                # All of it is there, however it was cut then.
                done.update((tensor, at) for at in places)
                used += found
                continue
            for start, end in pairwise([*places, size]):
                if start in pieces and pieces[start].size == end - start:
                    done.add((tensor, start))
                    used.append(pieces[start])
        return done, used

    def _place(self, tensor: int) -> tuple[PlacedWriter, int]:
        if isinstance(self._writer, PlacedWriters):
            return self._writer.place(tensor)
        return self._writer, tensor

    def write(self, index: int, data: memoryview, start: int = 0) -> None:
        """Bytes of tensor `index` from `start` of its data on, which are noted later; nothing
        where they are there."""
        if (index, start) in self._done:
            return
        self._writer.write(index, data, start)
        assert self._audit is not None
        size = memoryview(data).nbytes
        told = self._audit.told(self.numbers[index], start)
        self._notes.put(Whole(index, start, size, told))

    def _sync(self, tensors: Iterable[int]) -> None:
        """What is written of `tensors` lasts."""
        for file in {id(file): file for file, _ in map(self._place, tensors)}.values():
            file.sync()

    def complete(self) -> None:
        """Every byte is checked to be there and lasts; the files have no names yet."""
        self._notes.end()
        self._notes.check()
        self._writer.complete()
        self._ledger.add(self._notes.taken())
        self._ledger.whole(file.inode for file in self._files)

    def publish(self) -> None:
        """Give the files their names."""
        self._writer.publish()
        self._ledger.remove()
        self._ledger.close()

    def end(self, kind: type[BaseException]) -> None:
        """Close the files after an error of this `kind`, and note or remove what there is."""
        self._notes.end()
        wrong = issubclass(kind, WRONG)
        try:
            if not wrong and self._notes.failure is None:
                self._notes.now()
        except (GpukitError, OSError):
            pass  # the error that is under way says more
        finally:
            self._close(remove=wrong)

    def _close(self, *, remove: bool) -> None:
        """Close everything after an error, and remove it if it is of no use."""
        try:
            if remove:
                self._ledger.remove()
        except (GpukitError, OSError):
            pass  # the error that is under way says more
        finally:
            for file in self._files:
                file.discard()
            self._ledger.close()


def _is_told(told: Any) -> bool:
    """Whether an audit can know it."""
    try:
        sums_of(told)
    except (TypeError, ValueError):
        return False
    return True


def _layout(files: Sequence[PlacedWriter], outputs: Sequence[PlannedOutput]) -> str:
    """A digest of where everything goes and of what else decides the bytes."""
    found = sha256()
    for file in files:
        found.update(file.layout.header)
        found.update(repr((file.layout.offsets, file.layout.size)).encode())
    for output in outputs:
        found.update(repr((output.index, output.source_type)).encode())
        if output.importance is not None:
            found.update(output.importance.tobytes())
    return found.hexdigest()
