"""Work away from the thread that signals come to."""

import json
import signal
import threading
import time
from pathlib import Path
from types import FrameType

import pytest
from support import gguf_models

import gpukit
from gpukit.conversion import noting
from gpukit.conversion.apart import apart
from gpukit.formats.ledger import Ledger, Whole, ledger_of


class Told(BaseException):
    """What the signal raises."""


def test_what_work_raises_is_raised() -> None:
    ended: list[int] = []
    apart(lambda: ended.append(threading.get_ident()), pytest.fail)
    assert ended != [threading.get_ident()]

    def fails() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        apart(fails, pytest.fail)


def test_a_signal_stops_the_work_and_is_raised_when_it_has_ended() -> None:
    stopped, ended = threading.Event(), threading.Event()

    def tell(number: int, _frame: FrameType | None) -> None:
        raise Told(number)

    def work() -> None:
        assert stopped.wait(10)
        time.sleep(0.05)
        ended.set()

    before = signal.signal(signal.SIGALRM, tell)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Told):
            apart(work, stopped.set)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert ended.is_set()


class Late:
    """A lock at whose second taking a signal is answered when it is taken, and before anybody knows
    of that."""

    def __init__(self) -> None:
        self._lock, self._taken = threading.Lock(), 0
        self.release = self._lock.release

    def acquire(self) -> None:
        assert self._lock.acquire(timeout=10), "it is taken by the one who waits for it"
        self._taken += 1
        if self._taken == 2:
            raise Told


def test_a_signal_when_the_work_has_just_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpukit.conversion.apart.Lock", Late)
    with pytest.raises(Told):
        apart(lambda: None, lambda: None)


def test_a_pass_takes_no_lock_in_the_thread_that_signals_come_to(tmp_path: Path) -> None:
    steps: list[bool] = []

    def report(event: object) -> None:
        if isinstance(event, gpukit.Step) and event.done:
            steps.append(threading.current_thread() is threading.main_thread())

    model = gguf_models.build("eight-layers", tmp_path)
    gpukit.quantize(model, tmp_path / "x.gguf", "Q8_0", device="cpu", report=report)
    assert set(steps) == {False}


def test_a_signal_at_the_last_note_lets_nothing_be_noted_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, told = Ledger.add, list[bool]()

    def interrupted(self: Ledger, pieces: list[Whole]) -> None:
        add(self, pieces)
        if pieces and threading.current_thread() is threading.main_thread() and not told:
            told.append(True)
            raise Told

    monkeypatch.setattr(Ledger, "add", interrupted)
    monkeypatch.setattr(noting, "SECONDS", 60.0)
    model, out = gguf_models.build("eight-layers", tmp_path), tmp_path / "x.gguf"
    with pytest.raises(Told):
        gpukit.quantize(model, out, "Q8_0", device="cpu", resume=True)
    lines = map(json.loads, ledger_of(out).read_text().splitlines())
    noted = [(line["tensor"], line["start"]) for line in lines if "tensor" in line]
    assert told
    assert len(noted) == len(set(noted)) > 8
