"""The textbook LAMP does what the paper says, and fails where its docstring says it does."""

from fractions import Fraction

import pytest
import torch

from lampfast import textbook

LAYERS = {
    "a": torch.tensor([[1.0, -2.0], [2.0, 0.0]]),
    "b": torch.tensor([3.0, -1.0, 0.5]),
}


def test_scores_are_the_formula() -> None:
    # Worked by hand: squares ascending, each over itself and what follows. Of the two 2s in layer
    # "a" the one that sorts first scores 4/8, the other 4/4.
    scores = textbook.scores(LAYERS)
    assert scores["a"].flatten().tolist() == pytest.approx([1 / 9, 1 / 2, 1.0, 0.0])
    assert scores["b"].tolist() == pytest.approx([9 / 9, 1 / 10, 0.25 / 10.25])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_are_near_the_exact_fractions(dtype: torch.dtype) -> None:
    weight = torch.randn(7, 11, generator=torch.Generator().manual_seed(0)).to(dtype)
    squares = [Fraction(w) ** 2 for w in weight.flatten().tolist()]
    exact = {}
    remaining = sum(squares)
    for square, position in sorted((square, i) for i, square in enumerate(squares)):
        exact[position] = square / remaining
        remaining -= square
    score = textbook.scores({"w": weight})["w"]
    assert score.dtype == dtype
    assert score.shape == weight.shape
    found = score.flatten().tolist()
    # The bulk is right to a few roundings; the largest weights lose what total - cumsum lost.
    tolerance = 77 * torch.finfo(dtype).eps
    assert all(found[i] == pytest.approx(float(exact[i]), rel=tolerance, abs=0) for i in exact)


@pytest.mark.parametrize(("s", "kept"), [(0, 7), (0.0, 7), (3, 4), (0.5, 3), (7, 0), (1.0, 0)])
def test_masks_keep_the_highest_scores(s: float, kept: int) -> None:
    masks = textbook.masks(LAYERS, s)
    assert {name: mask.shape for name, mask in masks.items()} == {
        name: layer.shape for name, layer in LAYERS.items()
    }
    assert all(mask.dtype == torch.bool for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == kept


def test_prune_zeroes_what_masks_drop() -> None:
    layers = {name: layer.clone().requires_grad_() for name, layer in LAYERS.items()}
    textbook.prune(layers, 0.5)
    for name, mask in textbook.masks(LAYERS, 0.5).items():
        assert torch.equal(layers[name], LAYERS[name] * mask)
        assert layers[name].grad_fn is None


def test_ties_at_the_threshold_are_all_kept() -> None:
    layers = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([1.0, 2.0])}
    kept = sum(int(mask.sum()) for mask in textbook.masks(layers, 1).values())
    assert kept == 4  # asked for 3: the two 1s tie, and the threshold cannot tell them apart


def test_a_layer_of_zeros_erases_every_layer() -> None:
    layers = {"weights": torch.tensor([1.0, 2.0, 3.0]), "zeros": torch.zeros(2)}
    assert not any(mask.any() for mask in textbook.masks(layers, 0.6).values())


def test_the_largest_scores_round() -> None:
    weight = torch.rand(2**22, generator=torch.Generator().manual_seed(0)) + 1e-3
    score = textbook.scores({"w": weight})["w"]
    assert score.flatten()[weight.argmax()] != 1.0  # the exact score of every layer's largest
