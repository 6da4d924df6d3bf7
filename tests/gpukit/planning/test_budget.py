"""Types within a budget: beside the best of all choices, exactly within it, always the same."""

import random
from itertools import product

import pytest

from gpukit.planning.budget import BudgetError, Item, Option, spend


def options(*pairs: tuple[int, float]) -> tuple[Option, ...]:
    return tuple(Option(f"T{size}", size, loss) for size, loss in pairs)


def total(items: list[Item], types: dict[str, str]) -> tuple[int, float]:
    """Bytes and loss of a choice."""
    found = [next(o for o in item.options if o.type == types[item.name]) for item in items]
    return sum(o.nbytes for o in found), sum(o.loss for o in found)


def best(items: list[Item], budget: int) -> float:
    """The least loss of all choices within the budget."""
    choices = product(*(item.options for item in items))
    fitting = [c for c in choices if sum(o.nbytes for o in c) <= budget]
    return min(sum(o.loss for o in c) for c in fitting)


def random_items(seed: int) -> list[Item]:
    chance = random.Random(seed)
    items = []
    for number in range(chance.randint(1, 5)):
        sizes = sorted(chance.sample(range(1, 40), chance.randint(1, 5)))
        found = [(size, chance.uniform(0, 4) * 2.0 ** (-size / 4)) for size in sizes]
        chance.shuffle(found)
        items.append(Item(f"t{number}", options(*found)))
    return items


@pytest.mark.parametrize("seed", range(60))
def test_within_the_budget_and_near_the_best_of_all(seed: int) -> None:
    items = random_items(seed)
    least = sum(min(o.nbytes for o in item.options) for item in items)
    most = sum(max(o.nbytes for o in item.options) for item in items)
    step = max(max(o.loss for o in item.options) - min(o.loss for o in item.options)
               for item in items)  # fmt: skip
    hits = 0
    for budget in range(least, most + 1):
        types = spend(items, budget)
        size, loss = total(items, types)
        assert size <= budget
        found = best(items, budget)
        # One step does not fit at most: the gap is never more than that.
        assert found - 1e-12 <= loss <= found + step + 1e-12
        hits += loss <= found + 1e-12
        # Nothing that still fits would lose less.
        for item in items:
            now = next(o for o in item.options if o.type == types[item.name])
            for option in item.options:
                assert size - now.nbytes + option.nbytes > budget or option.loss >= now.loss
    assert hits * 2 >= most - least + 1


@pytest.mark.parametrize("seed", range(20))
def test_the_best_of_all_where_hulls_have_steps_of_one_size(seed: int) -> None:
    chance = random.Random(seed)
    scales = [chance.uniform(1, 999) for _ in range(4)]
    items = [
        Item(f"t{i}", options(*((4 + 4 * k, scale * 4.0**-k) for k in range(5))))
        for i, scale in enumerate(scales)
    ]
    for budget in range(16, 81, 4):
        assert total(items, spend(items, budget))[1] == pytest.approx(best(items, budget))


def test_what_lies_above_the_hull_only_fills() -> None:
    items = [Item("a", options((1, 9.0), (2, 8.9), (3, 1.0))), Item("b", options((1, 0.0)))]
    assert spend(items, 3) == {"a": "T2", "b": "T1"}
    assert spend(items, 4) == {"a": "T3", "b": "T1"}


def test_more_bytes_that_lose_more_are_never_taken() -> None:
    items = [Item("a", (Option("x", 2, 1.0), Option("y", 4, 2.0), Option("z", 2, 0.5)))]
    assert spend(items, 4) == {"a": "z"}


def test_ties_go_to_the_first_and_the_order_of_options_says_nothing() -> None:
    pair = options((1, 2.0), (2, 1.0))
    items = [Item("b", pair), Item("a", pair), Item("c", pair[::-1])]
    assert spend(items, 4) == {"b": "T2", "a": "T1", "c": "T1"}
    assert spend(items, 5) == {"b": "T2", "a": "T2", "c": "T1"}


def test_types_of_one_size_and_loss_are_the_first() -> None:
    items = [Item("a", (Option("x", 2, 1.0), Option("y", 2, 1.0)))]
    assert spend(items, 2) == {"a": "x"}


@pytest.mark.parametrize("budget", [-1, 0, 2, 8])
def test_what_cannot_be_has_its_range(budget: int) -> None:
    items = [Item("a", options((1, 2.0), (3, 1.0))), Item("b", options((2, 2.0), (4, 1.0)))]
    with pytest.raises(BudgetError) as caught:
        spend(items, budget)
    assert (caught.value.least, caught.value.most) == (3, 7)


def test_nothing_to_choose() -> None:
    assert spend([], 0) == {}
    with pytest.raises(BudgetError):
        spend([], 1)
