"""The oracle against examples worked by hand from its definition."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from compare import assert_same_masks

from lampfast import reference

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def test_scores_divide_a_square_by_the_sum_from_it_up() -> None:
    # Squares 1, 4, 9: the sums from each up are 14, 13, 9.
    assert reference.scores({"a": torch.tensor([1.0, 2.0, 3.0])}) == {
        "a": [Fraction(1, 14), Fraction(4, 13), Fraction(1)]
    }


def test_scores_ignore_order_sign_and_scale() -> None:
    layers = {
        "shuffled": torch.tensor([3.0, 1.0, 2.0]),
        "negative": torch.tensor([-3.0, 1.0, -2.0]),
        "scaled": torch.tensor([[0.75], [0.25], [-0.5]]),
    }
    assert reference.scores(layers) == {
        name: [Fraction(1), Fraction(1, 14), Fraction(4, 13)] for name in layers
    }


def test_equal_magnitudes_rise_with_their_index() -> None:
    assert reference.scores({"a": torch.tensor([5.0, -5.0, 5.0])}) == {
        "a": [Fraction(1, 3), Fraction(1, 2), Fraction(1)]
    }


def test_zeros_score_zero_and_cost_the_others_nothing() -> None:
    assert reference.scores({"a": torch.tensor([0.0, 4.0, -0.0, 3.0]), "b": torch.zeros(2)}) == {
        "a": [Fraction(0), Fraction(1), Fraction(0), Fraction(9, 25)],
        "b": [Fraction(0), Fraction(0)],
    }


def test_sums_are_exact() -> None:
    # In float64 the three would all be 2^-120.
    layers = {"a": torch.tensor([1.0, 1.0, 2.0**60]), "b": torch.tensor([1.0, 2.0**60])}
    assert reference.scores(layers) == {
        "a": [Fraction(1, 2**120 + 2), Fraction(1, 2**120 + 1), Fraction(1)],
        "b": [Fraction(1, 2**120 + 1), Fraction(1)],
    }


def test_masks_prune_the_lowest_scores_of_all_layers() -> None:
    # a scores 1/14, 4/13, 1; b scores 1/17, 1: in order b0, a0, a1, then a2 before b1.
    layers = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([[1.0], [4.0]])}
    order = [("b", (0, 0)), ("a", (0,)), ("a", (1,)), ("a", (2,)), ("b", (1, 0))]
    expected = {"a": torch.ones(3, dtype=torch.bool), "b": torch.ones(2, 1, dtype=torch.bool)}
    for k in range(6):
        if k:
            name, index = order[k - 1]
            expected[name][index] = False
        assert_same_masks(reference.masks(layers, k), expected)


def test_masks_break_ties_by_layer_then_magnitude_then_index() -> None:
    # Both layers score 1/2, 1; the two zeros and the whole of c score 0.
    layers = {
        "a": torch.tensor([3.0, 0.0, 3.0]),
        "b": torch.tensor([-7.0, 7.0, -0.0]),
        "c": torch.zeros(1),
    }
    order = [("a", 1), ("b", 2), ("c", 0), ("a", 0), ("b", 0), ("a", 2), ("b", 1)]
    for k in range(8):
        expected = {
            name: torch.ones_like(layer, dtype=torch.bool) for name, layer in layers.items()
        }
        for name, index in order[:k]:
            expected[name][index] = False
        assert_same_masks(reference.masks(layers, k), expected)


def test_masks_compare_scores_as_real_numbers() -> None:
    # a0 scores 1/(2^120 + 2), b0 a little more: floating point would call it a tie for a or b.
    big = 2.0**60
    layers = {"b": torch.tensor([1.0, big]), "a": torch.tensor([1.0, 1.0, big])}
    assert_same_masks(
        reference.masks(layers, 1),
        {"b": torch.tensor([True, True]), "a": torch.tensor([False, True, True])},
    )


@pytest.mark.parametrize(
    ("s", "k"), [(0, 0), (1, 1), (5, 5), (0.0, 0), (1.0, 5), (0.5, 2), (0.3, 2), (0.7, 4)]
)
def test_a_float_is_a_share_and_an_int_is_a_count(s: float, k: int) -> None:
    # Python rounds 2.5 to 2 and 3.5 to 4; 1.5 (of 0.3) to 2.
    mask = reference.masks({"a": torch.arange(1.0, 6.0)}, s)["a"]
    assert mask.tolist() == [False] * k + [True] * (5 - k)


@pytest.mark.parametrize("s", [-1, 6, -0.5, 1.5])
def test_too_much_or_too_little_is_an_error(s: float) -> None:
    with pytest.raises(ValueError, match="of 5 elements"):
        reference.masks({"a": torch.ones(5)}, s)


def test_importance_takes_the_place_of_magnitude() -> None:
    layers = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    importance = {"b": torch.tensor([1.0]), "a": torch.tensor([-4.0, 3.0])}
    assert reference.scores(layers, importance) == {
        "a": [Fraction(1), Fraction(9, 25)],
        "b": [Fraction(1)],
    }
    expected = {"a": torch.tensor([True, False]), "b": torch.tensor([True])}
    assert_same_masks(reference.masks(layers, 1, importance), expected)


@pytest.mark.parametrize("dtype", FLOATS + FLOAT8)
def test_magnitudes_count_smallest_steps(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    step = info.smallest_normal * info.eps
    largest = int(Fraction(info.max) / Fraction(step))
    steps = [0, 1, 2, 3, round(1 / info.eps), round(2 / info.eps), largest]
    values = torch.tensor([n * step for n in steps[:-1]] + [info.max], dtype=torch.float64)
    assert reference.magnitudes(values.to(dtype)) == steps
    assert reference.magnitudes((-values).to(dtype)) == steps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, *FLOAT8])
def test_magnitudes_of_every_number_of_a_small_dtype(dtype: torch.dtype) -> None:
    bits = torch.int8 if dtype.itemsize == 1 else torch.int16
    words = torch.arange(torch.iinfo(bits).max, dtype=bits).view(dtype)
    values = words.to(torch.float64)
    finite = values.isfinite()
    info = torch.finfo(dtype)
    got = reference.magnitudes(words[: int(finite.sum())])
    assert [n * info.smallest_normal * info.eps for n in got] == values[finite].tolist()


@pytest.mark.parametrize("dtype", FLOATS + FLOAT8)
def test_dtypes_agree(dtype: torch.dtype) -> None:
    values = torch.tensor([[1.0, -3.0, 0.5], [0.0, 2.0, -0.0]])
    assert reference.scores({"a": values.to(dtype)}) == reference.scores({"a": values})


def test_row_major_order_whatever_the_strides() -> None:
    values = torch.arange(24.0).reshape(1, 2, 3, 4)
    expected = reference.magnitudes(values)
    assert reference.magnitudes(values.contiguous(memory_format=torch.channels_last)) == expected
    assert reference.magnitudes(values.mT.contiguous().mT) == expected
    assert reference.magnitudes(values.numpy()) == expected
    assert reference.magnitudes(values.numpy()[..., ::-1]) == reference.magnitudes(values.flip(-1))


def test_scalars_and_empty_layers() -> None:
    layers: dict[str, reference.Layer] = {
        "scalar": torch.tensor(-2.0),
        "empty": torch.empty(3, 0),
        "array": np.ones((1, 1), np.float32),
    }
    assert reference.scores(layers) == {
        "scalar": [Fraction(1)],
        "empty": [],
        "array": [Fraction(1)],
    }
    masks = reference.masks(layers, 1)
    assert [mask.shape for mask in masks.values()] == [(), (3, 0), (1, 1)]
    assert not masks["scalar"]
    assert masks["array"].all()
    assert reference.masks({}, 0) == {}


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float8_e5m2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_only_finite_numbers_have_scores(dtype: torch.dtype, bad: float) -> None:
    with pytest.raises(ValueError, match="element 1 is not finite"):
        reference.scores({"a": torch.tensor([1.0, bad]).to(dtype)})


def test_float8_e4m3fn_has_nan_only() -> None:
    with pytest.raises(ValueError, match="element 0 is not finite"):
        reference.scores({"a": torch.tensor([float("nan")]).to(torch.float8_e4m3fn)})
