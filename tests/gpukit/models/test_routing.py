"""Which experts are chosen, and their shares, beside the sums as their papers write them."""

import pytest
import torch

from gpukit.models.experts import GATINGS
from gpukit.models.routing import Routing

LOGITS = torch.tensor([[0.0, 2.0, 1.0, -1.0, 3.0, 0.5], [5.0, -5.0, 0.25, 0.0, 4.0, 1.0]])


def test_a_softmax_over_all_brought_to_one_is_that_over_the_chosen() -> None:
    shares, chosen = Routing(2)(LOGITS)
    assert chosen.tolist() == [[4, 1], [0, 4]]
    torch.testing.assert_close(shares.sum(-1), torch.ones(2))
    again, same = Routing(2, gating="softmax_of_chosen")(LOGITS)
    assert torch.equal(chosen, same)
    torch.testing.assert_close(shares, again)
    plain, _ = Routing(2, normed=False)(LOGITS)
    torch.testing.assert_close(plain, torch.softmax(LOGITS, -1).gather(1, chosen))


def test_a_bias_chooses_and_has_no_part_in_shares() -> None:
    bias = torch.tensor([0.0, 0.0, 0.0, 9.0, 0.0, 0.0])
    shares, chosen = Routing(2, "sigmoid", normed=False, scale=2.5, bias=bias)(LOGITS)
    assert chosen.tolist() == [[3, 4], [3, 0]]
    torch.testing.assert_close(shares, 2.5 * torch.sigmoid(LOGITS).gather(1, chosen))
    shares, _ = Routing(2, "sigmoid", scale=2.5, bias=bias)(LOGITS)
    torch.testing.assert_close(shares.sum(-1), torch.full((2,), 2.5))


def test_factors_multiply_the_shares_of_what_was_chosen() -> None:
    factors = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    plain, chosen = Routing(2)(LOGITS)
    shares, same = Routing(2, factors=factors)(LOGITS)
    assert torch.equal(chosen, same)
    torch.testing.assert_close(shares, plain * (chosen + 1))


def test_experts_are_chosen_in_the_best_groups() -> None:
    # Sums of pairs: 2, 0, 3.5 and 0, 0.25, 5.
    _, chosen = Routing(2, "softmax_of_chosen", groups=3, groups_used=1)(LOGITS)
    assert [sorted(row) for row in chosen.tolist()] == [[4, 5], [4, 5]]
    _, chosen = Routing(2, "softmax_of_chosen", groups=3, groups_used=2)(LOGITS)
    assert [sorted(row) for row in chosen.tolist()] == [[1, 4], [4, 5]]
    _, chosen = Routing(2, "softmax_of_chosen", groups=1, groups_used=1)(LOGITS)
    assert [sorted(row) for row in chosen.tolist()] == [[1, 4], [0, 4]]


def test_shares_of_scores_that_are_all_zero_are_zero() -> None:
    shares, _ = Routing(2, "sigmoid")(torch.full((1, 4), -1e4))
    assert shares.tolist() == [[0.0, 0.0]]


def test_an_unknown_gating() -> None:
    with pytest.raises(ValueError, match=f"known: {', '.join(GATINGS)}"):
        Routing(2, "tanh")(LOGITS)
