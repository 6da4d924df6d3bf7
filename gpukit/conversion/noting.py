"""Pieces that are written, noted in a ledger by a thread of its own, so that writing waits for no
disk."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Lock, Thread

from gpukit.formats.ledger import Ledger, Whole

# A kill loses what these many seconds, or bytes written, have brought.
SECONDS, BYTES = 1.0, 256 << 20
# Makes what is written of these tensors last.
Sync = Callable[[Iterable[int]], None]


class Notes:
    """What is written and not yet noted, from `begin` to `end`. A line about a piece follows when
    `sync` has seen to it. `failure` is why noting stopped, if it did before it was told to."""

    def __init__(self, sync: Sync) -> None:
        self.failure: BaseException | None = None
        self._sync = sync
        self._pieces: list[Whole] = []
        self._size = 0
        self._lock = Lock()
        # No event: what a signal raises in the middle of one would leave its lock taken.
        self._stop, self._wake = False, SimpleQueue[None]()
        self._thread = Thread(target=self._run, name="gpukit-note", daemon=True)

    def begin(self, ledger: Ledger) -> None:
        """Note in `ledger` from now on."""
        self._ledger = ledger
        self._thread.start()

    def put(self, piece: Whole) -> None:
        """Have `piece` noted, which is written; raises why noting stopped."""
        with self._lock:
            self._pieces.append(piece)
            self._size += piece.size
            if self._size >= BYTES:
                self._wake.put(None)
        self.check()

    def check(self) -> None:
        """Raise why noting stopped, if it did."""
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        """Note what is written every now and then, until told to stop."""
        while not self._stop:
            with suppress(Empty):
                self._wake.get(timeout=SECONDS)
            try:
                if not self._stop:
                    self.now()
            except BaseException as error:  # raised again by `check`
                self.failure = error
                return

    def now(self) -> None:
        """Sync and note what is written."""
        pieces = self.taken()
        if pieces:
            self._sync({piece.tensor for piece in pieces})
            self._ledger.add(pieces)

    def taken(self) -> list[Whole]:
        """What is written and not noted, for the caller to note: taken before that, so that what a
        signal interrupts is not noted again."""
        with self._lock:
            pieces, self._pieces, self._size = self._pieces, [], 0
        return pieces

    def end(self) -> None:
        """Let the thread end; nothing is noted behind it but by `now`."""
        self._stop = True
        self._wake.put(None)
        self._thread.join()
