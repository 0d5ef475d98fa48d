"""MaxDropout: what is left out, when, and where no gradient flows."""

from __future__ import annotations

import torch

from rbl_defenses.maxdropout import MaxDropout


def test_what_lies_in_the_upper_part_of_the_batchs_range_is_left_out() -> None:
    x = torch.tensor([[0.0, 2.0, 6.9], [7.1, 10.0, -0.0]], requires_grad=True)
    found = MaxDropout(0.3)(x)
    assert found.tolist() == [[0.0, 2.0, 6.900000095367432], [0.0, 0.0, 0.0]]  # nothing is scaled up
    found.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_the_range_is_that_of_the_whole_tensor_from_its_smallest_number() -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 3, 4, 4)
    normalised = (x - x.min()) / (x.max() - x.min())
    for drop in (0.1, 0.5, 0.9):
        assert torch.equal(MaxDropout(drop)(x), torch.where(normalised > 1 - drop, 0.0, x))


def test_it_does_nothing_in_use_nor_to_numbers_that_are_all_alike() -> None:
    x = torch.rand(5, 4)
    assert torch.equal(MaxDropout(0.9).eval()(x), x)
    assert torch.equal(MaxDropout(0.9)(torch.full((5, 4), 0.7)), torch.full((5, 4), 0.7))
