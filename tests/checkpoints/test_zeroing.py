"""Zeroing by a threshold, piece by piece, is what the engine does to the whole layer."""

import numpy as np
import pytest
import torch
from hard_weights import DTYPES
from hypothesis import given
from hypothesis import strategies as st

import lampfast
from lampfast import _core
from lampfast._engine import calls, views
from lampfast.checkpoints import zeroing
from lampfast.checkpoints.zeroing import Threshold


def _threshold(weight: torch.Tensor, count: int, scored: zeroing.Bits | None = None) -> Threshold:
    layers = views.layers({"w": weight})
    spec = _core.SelectionSpec(_core.Ranking.lamp, [count])
    (found,) = calls.thresholds(layers, layers, spec)
    return Threshold(found.key, found.ties, scored)


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_zeroing(dtype: torch.dtype, data: st.DataObject) -> None:
    """Few values, so that many are equal; zeros of both signs among them."""
    values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.25, 3.0])
    numbers = data.draw(st.lists(values, min_size=1, max_size=60))
    weight = torch.tensor(numbers, dtype=torch.float64).to(dtype)
    count = data.draw(st.integers(0, len(numbers)))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(numbers)), max_size=4)))
    expected = weight.clone()
    lampfast.prune([expected], count)
    threshold = _threshold(weight, count)
    for part in np.split(zeroing.bits(weight), cuts):
        threshold.zero(part)
    assert np.array_equal(zeroing.bits(weight), zeroing.bits(expected))


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_and_pieces(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zeroing, "_BLOCK", 64)
    torch.manual_seed(0)
    weight = torch.randn(7, 30, 22).to(dtype)
    view = weight.transpose(0, 2)[::2]
    expected = view.clone()
    lampfast.prune([expected], 0.6)
    _threshold(view, round(0.6 * view.numel())).zero(zeroing.bits(weight).transpose(2, 1, 0)[::2])
    assert torch.equal(view.double(), expected.double())


def test_importances_of_another_size_decide() -> None:
    torch.manual_seed(0)
    weight, importance = torch.randn(500).bfloat16(), torch.rand(500, dtype=torch.float64)
    expected = weight.clone()
    lampfast.prune({"w": expected}, 200, importance={"w": importance})
    _threshold(importance, 200, zeroing.bits(importance)).zero(zeroing.bits(weight))
    assert torch.equal(weight, expected)
