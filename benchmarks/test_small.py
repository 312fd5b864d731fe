"""Whole calls on small models and on many layers, where what a call costs by itself counts."""

from collections.abc import Callable
from functools import partial

import contenders
import peers
import pytest
import torch
from contenders import Prepare
from shapes import Shapes, shrunk
from timing import Clock
from weights import Weights, gaussian

import lampfast
from lampfast import reference, textbook

S = 0.9


def _copied(call: Callable[[Weights], object], weights: Weights, targets: Weights) -> Prepare:
    """Sets up a call that follows at once, as in a training loop."""

    def prepare() -> Callable[[], object]:
        contenders.copy(weights, targets)
        return partial(call, targets)

    return prepare


@pytest.fixture(scope="module")
def lenet(quick: bool) -> Weights:
    """LeNet-300-100 (LeCun et al., 1998)."""
    shapes: Shapes = {"0.weight": (300, 784), "2.weight": (100, 300), "4.weight": (10, 100)}
    return gaussian(shrunk(shapes) if quick else shapes)


@pytest.fixture(scope="module")
def definition(lenet: Weights) -> Weights:
    """Its masks by exact arithmetic, which takes seconds."""
    return reference.masks(lenet, S)


_MASKS: dict[str, Callable[[Weights, float], Weights]] = {"lampfast": lampfast.masks, **peers.MASKS}
_PRUNE: dict[str, Callable[[Weights, float], object]] = {
    "lampfast": lampfast.prune,
    "textbook": textbook.prune,
    "torch-global-l1": lambda weights, s: contenders.global_magnitude(weights, s)(),
}


@pytest.mark.parametrize("name", _MASKS)
def test_masks_of_lenet(name: str, lenet: Weights, definition: Weights, clock: Clock) -> None:
    masks = clock("masks of LeNet-300-100", lambda: partial(_MASKS[name], lenet, S))
    differing = sum(int((masks[each] != definition[each]).sum()) for each in definition)
    assert differing <= (0 if name == "lampfast" else 4)  # the peers round


@pytest.mark.parametrize("name", _PRUNE)
def test_prune_of_lenet(name: str, lenet: Weights, definition: Weights, clock: Clock) -> None:
    targets = contenders.clone(lenet)
    prepare = _copied(lambda given: _PRUNE[name](given, S), lenet, targets)
    clock("prune LeNet-300-100", prepare)
    if name == "lampfast":
        assert all(torch.equal(targets[each], lenet[each] * definition[each]) for each in lenet)


@pytest.mark.parametrize("name", _PRUNE)
@pytest.mark.parametrize("layers", [10, 100, 1000])
def test_many_layers(layers: int, name: str, clock: Clock, quick: bool) -> None:
    weights = gaussian({str(i): (25, 40) for i in range(layers // 10 if quick else layers)})
    targets = contenders.clone(weights)
    prepare = _copied(lambda given: _PRUNE[name](given, S), weights, targets)
    clock(f"prune {layers:,} layers of 1,000", prepare)
    if name == "lampfast":
        contenders.check_zeros(targets, S)


@pytest.mark.parametrize("stacked", [False, True], ids=["tensors", "slices-of-one-parameter"])
@pytest.mark.parametrize("verb", [lampfast.masks, lampfast.prune], ids=["masks", "prune"])
def test_slices(verb: Callable[..., object], stacked: bool, clock: Clock, quick: bool) -> None:
    apart = gaussian({str(i): (24, 24) for i in range(100 if quick else 10_000)})
    weights = {"experts": torch.stack(list(apart.values()))} if stacked else apart
    targets = contenders.clone(weights)
    call = partial(verb, sparsity=S, **({"stacked": "experts"} if stacked else {}))
    clock(f"{verb.__name__} of 10,000 layers of 576", _copied(call, weights, targets))
    pruned = lampfast.masks(apart, S)
    expected = torch.stack([apart[name] * mask for name, mask in pruned.items()])
    if verb is lampfast.prune:
        found = targets["experts"] if stacked else torch.stack(list(targets.values()))
        assert torch.equal(found, expected)
