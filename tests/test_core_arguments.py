"""Arguments that the extension refuses, as it would read or write out of bounds with them."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lampfast import _core

Layer = tuple[int, _core.Dtype, tuple[int, ...], tuple[int, ...], int]
Verb = Callable[[list[Layer], list[Layer]], object]

MACHINE = (2, ())
WEIGHTS, OTHERS = np.ones((4, 6), np.float32), np.ones((4, 6), np.float32)
MASKS, SCORES = np.ones((4, 6), bool), np.ones((4, 6), np.float32)


def _layer(array: Any, **changes: Any) -> Layer:
    dtype = getattr(_core.Dtype, "boolean" if array.dtype == bool else array.dtype.name)
    strides = tuple(stride // array.itemsize for stride in array.strides)
    found = {"data": array.ctypes.data, "dtype": dtype, "shape": array.shape, "strides": strides}
    found |= changes
    return found["data"], found["dtype"], found["shape"], found["strides"], -1


SPEC = _core.SelectionSpec(_core.Ranking.lamp, [7])
TARGETS = {"prune": OTHERS, "masks": MASKS, "prune_zeros": OTHERS, "score": SCORES}
VERBS: dict[str, Verb] = {
    "prune": lambda layers, targets: _core.prune(layers, targets, SPEC, MACHINE),
    "masks": lambda layers, targets: _core.masks(layers, targets, SPEC, MACHINE),
    "prune_zeros": lambda layers, targets: _core.prune_zeros(layers, targets, MACHINE),
    "score": lambda layers, targets: _core.score(layers, targets, MACHINE),
}
READERS: dict[str, Callable[[list[Layer]], object]] = {
    "thresholds": lambda layers: _core.thresholds(layers, SPEC, MACHINE),
    "zero_thresholds": lambda layers: _core.zero_thresholds(layers, MACHINE),
    "first_not_finite": lambda layers: _core.first_not_finite(layers, MACHINE),
    "pack": lambda layers: _core.pack(layers, [0] * len(layers), MACHINE),
    "apply_packed_masks": lambda layers: _core.apply_packed_masks(
        layers, [0] * len(layers), MACHINE
    ),
}
BAD_LAYERS: dict[str, tuple[dict[str, Any], str]] = {
    "negative shape": ({"shape": (-4, 6)}, "has the shape (-4, 6), but needs extents"),
    "product too large": ({"shape": (1 << 40, 1 << 40)}, "whose product fits 64 bits"),
    "product too large but for 0": ({"shape": (0, 1 << 40, 1 << 40), "strides": (1, 1, 1)}, "fits"),
    "strides too large": ({"strides": (1 << 61, 1)}, "its bytes to lie within 2^63"),
    "strides overflow": ({"strides": (1 << 62, 1 << 62)}, "and the strides (4611686018427387904,"),
    "least stride": ({"strides": (-(1 << 63), 1)}, "its bytes to lie within 2^63"),
    "strides missing": ({"strides": (6,)}, "has the strides (6), but needs as many as its shape"),
    "strides too many": ({"strides": (6, 1, 1)}, "has dimensions"),
    "no address": ({"data": 0}, "has the address 0, but needs that of its first element"),
}


@pytest.mark.parametrize("verb", READERS)
@pytest.mark.parametrize("bad", [*BAD_LAYERS, "boolean"])
def test_bad_layers_are_refused(verb: str, bad: str) -> None:
    changes, message = BAD_LAYERS.get(
        bad, ({"dtype": _core.Dtype.boolean}, "has the dtype boolean, but needs a floating dtype")
    )
    layers = [_layer(WEIGHTS), _layer(WEIGHTS, **changes)]
    with pytest.raises(ValueError, match=f"^layer 1 .*{re.escape(message)}"):
        READERS[verb](layers)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("bad", [*BAD_LAYERS, "other shape", "fewer dimensions"])
def test_bad_targets_are_refused(verb: str, bad: str) -> None:
    others: dict[str, tuple[dict[str, Any], str]] = {
        "other shape": ({"shape": (6, 4)}, "has the shape (6, 4), but needs that of its layer"),
        "fewer dimensions": ({"shape": (24,), "strides": (1,)}, "has the shape (24), but needs"),
    }
    changes, message = (BAD_LAYERS | others)[bad]
    good = _layer(TARGETS[verb])
    with pytest.raises(ValueError, match=f"^target 1 .*{re.escape(message)}"):
        VERBS[verb]([_layer(WEIGHTS)] * 2, [good, _layer(TARGETS[verb], **changes)])


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_there_must_be_as_many_targets_as_layers(verb: str, count: int) -> None:
    with pytest.raises(ValueError, match=f"^2 layers need as many targets, not {count}$"):
        VERBS[verb]([_layer(WEIGHTS)] * 2, [_layer(TARGETS[verb])] * count)


@pytest.mark.parametrize(
    ("verb", "target", "message"),
    [
        ("prune", _layer(MASKS), "the dtype boolean, but needs a floating dtype"),
        ("prune", _layer(WEIGHTS, dtype=_core.Dtype.float16), "at the same address, float32"),
        ("masks", _layer(OTHERS), "the dtype float32, but needs boolean"),
        (
            "score",
            _layer(SCORES, dtype=_core.Dtype.float64),
            "dtype float64, but needs float32",
        ),
        ("score", _layer(SCORES, strides=(1, 4)), "(1, 4), but needs those of a row-major tensor"),
    ],
    ids=["boolean weights", "two dtypes", "float masks", "wide scores", "other order"],
)
def test_targets_must_be_what_the_verb_writes(verb: str, target: Layer, message: str) -> None:
    with pytest.raises(ValueError, match=f"^target 0 .*{re.escape(message)}"):
        VERBS[verb]([_layer(WEIGHTS)], [target])


def test_strides_of_axes_that_have_one_element_mean_nothing() -> None:
    layer = _layer(WEIGHTS, shape=(1, 24), strides=(1 << 62, 1))
    _core.masks([layer], [_layer(MASKS.reshape(1, 24))], SPEC, MACHINE)
    assert MASKS.sum() == 24 - 7


def test_empty_layers_have_neither_address_nor_order() -> None:
    empty = _layer(WEIGHTS, data=0, shape=(0, 6))
    target = _layer(WEIGHTS, data=0, shape=(0, 6), dtype=_core.Dtype.float16)
    spec = _core.SelectionSpec(_core.Ranking.lamp, [0])
    assert _core.prune([empty], [target], spec, MACHINE)[0].pruned == 0
    scores = _layer(SCORES, data=0, shape=(0, 6), strides=(1, 1))
    _core.score([empty], [scores], MACHINE)


CODES, BLOCK_SCALES = np.ones((4, 6), np.uint8), np.ones((2, 3), np.float32)
GOOD_SCALES = (BLOCK_SCALES.ctypes.data, (2, 2), (3, 1))
BAD_SCALES: dict[str, tuple[dict[str, Any], tuple[int, tuple[int, ...], tuple[int, ...]], str]] = {
    "dtype": ({"dtype": _core.Dtype.float32}, GOOD_SCALES, "needs a float8 dtype in host memory"),
    "block missing": ({}, (GOOD_SCALES[0], (2,), (3, 1)), "as many of both as its shape"),
    "strides missing": ({}, (GOOD_SCALES[0], (2, 2), (3,)), "as many of both as its shape"),
    "empty block": ({}, (GOOD_SCALES[0], (2, 0), (3, 1)), "extents of at least 1"),
    "no address": ({}, (0, (2, 2), (3, 1)), "scales at the address 0"),
}


def _scaled(changes: dict[str, Any], scales: object) -> Any:
    dtype = changes.get("dtype", _core.Dtype.float8_e4m3fn)
    return CODES.ctypes.data, dtype, CODES.shape, (6, 1), -1, scales


@pytest.mark.parametrize("bad", BAD_SCALES)
def test_bad_scales_are_refused(bad: str) -> None:
    changes, scales, problem = BAD_SCALES[bad]
    with pytest.raises(ValueError, match=re.escape(problem)):
        _core.thresholds([_scaled(changes, scales)], SPEC, MACHINE)


def test_packed_masks_are_of_codes() -> None:
    layer = _scaled({}, GOOD_SCALES)
    assert _core.thresholds([layer], SPEC, MACHINE)[0].pruned == 7
    for call in (_core.pack, _core.apply_packed_masks):
        with pytest.raises(ValueError, match="layer 0 has scales"):
            call([layer], [0], MACHINE)
