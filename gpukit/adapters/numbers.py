"""Ranks and scales that an adapter_config.json says: what is wrong with one, in words."""

import math
from typing import Any

MOST_RANK = 1 << 20
# Far beyond any that means something.
MOST_SCALE = 1e30


def wrong_rank(value: Any) -> str | None:
    """What `value`, which should be a rank, is, and what is needed; None for one that is right."""
    if type(value) is not int or value <= 0:
        return f"{_shown(value)}; a whole number above 0 is needed"
    if value > MOST_RANK:
        return f"{_shown(value)}; {MOST_RANK} at most is possible"
    return None


def wrong_scale(value: Any) -> str | None:
    """As `wrong_rank` for what should be an alpha or a scale, any number that is not too large."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or (isinstance(value, float) and math.isnan(value)):
        return f"{_shown(value)}; a number is needed"
    if abs(value) > MOST_SCALE:
        return f"{_shown(value)}; a number up to {MOST_SCALE:g} is needed"
    return None


def _shown(value: Any) -> str:
    """The beginning of `value`, a text in quotes."""
    return repr(value[:40]) if isinstance(value, str) else str(value)[:40]
