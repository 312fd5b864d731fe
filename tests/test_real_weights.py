"""EfficientNet-Lite0's ImageNet weights, in every dtype, against sorted_check.py."""

import pytest
import torch
from compare import assert_same_masks
from hard_weights import DTYPES
from sorted_check import SortedCheck

import lampfast
from lampfast._cli.demo import imagenet_weights


def test_the_weights_are_the_ones_expected() -> None:
    model = imagenet_weights()
    assert len(model) == 50
    assert sum(layer.numel() for layer in model.values()) == 4_608_992


@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_and_prune(dtype: torch.dtype) -> None:
    # A third fills the digits that float64 has more than float32.
    model = {name: (layer.double() / 3).to(dtype) for name, layer in imagenet_weights().items()}
    check = SortedCheck(model)
    for s in (0.5, 0.8, 0.9, 0.99):
        masks = check.masks(round(s * check.numel))
        assert_same_masks(lampfast.masks(model, s), masks)

    report = lampfast.prune(model, 0.99)
    assert report.numel - report.kept == round(0.99 * check.numel)
    assert_same_masks({name: layer.double() != 0 for name, layer in model.items()}, masks)
    assert lampfast.report(model).kept == report.kept


def test_bf16_and_back_changes_only_the_rounding() -> None:
    """Scores are those of the rounded weights: float32 tensors of bfloat16 values agree."""
    half = {name: layer.bfloat16() for name, layer in imagenet_weights().items()}
    full = {name: layer.float() for name, layer in half.items()}
    assert_same_masks(lampfast.masks(half, 0.9), lampfast.masks(full, 0.9))
