"""What is told is one line, whatever names it holds."""

import pytest

from gpukit.events import Status, Step, Warned


@pytest.mark.parametrize("event", [Status("a\n\x1b[2J\udcff"), Warned("a\n\x1b[2J\udcff")])
def test_names_do_not_break_lines(event: Status | Warned) -> None:
    assert event.text == r"a\n\x1b[2J\udcff"


def test_steps_are_told_apart() -> None:
    assert Step("a\n", 1, 2) == Step(r"a\n", 1, 2) != Step("a", 1, 2)
