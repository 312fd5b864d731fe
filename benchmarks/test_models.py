"""masks, prune and scores of whole models beside what people use today, and their memory."""

from collections.abc import Callable
from functools import partial

import contenders
import peers
import pytest
import torch
from shapes import MODELS, Shapes
from timing import Clock
from weights import Weights, gaussian

import lampfast
from lampfast import textbook
from lampfast._cli import measure

S = 0.9
_MIB = 2**20
_ROUNDED = 1e-5  # of the weights: so many may differ by the rounding of the peers' scores

_MODELS = [
    pytest.param(model, marks=() if model == "resnet50" else pytest.mark.big) for model in MODELS
]


@pytest.fixture(scope="module")
def make(sized: Callable[[Shapes], Shapes]) -> Callable[[str], Weights]:
    """Makes the Gaussian weights of a model, of which only the last ones are kept."""
    last: dict[str, Weights] = {}

    def weights(model: str) -> Weights:
        if model not in last:
            last.clear()
            last[model] = gaussian(sized(MODELS[model]()))
        return last[model]

    return weights


@pytest.mark.parametrize("name", ["lampfast", *peers.MASKS])
@pytest.mark.parametrize("model", _MODELS)
def test_masks(model: str, name: str, make: Callable[[str], Weights], clock: Clock) -> None:
    weights = make(model)
    peer = peers.MASKS.get(name)
    call = partial(peer, weights, S) if peer else partial(lampfast.masks, weights, S)
    masks = clock(f"masks of {model} to {S:.0%}", lambda: call, slow=peer is not None)
    total = contenders.numel(weights)
    if peer is None:
        assert contenders.dropped(masks) == round(S * total)
        return
    expected = lampfast.masks(weights, S)
    differing = sum(int((masks[each] != expected[each]).sum()) for each in expected)
    assert differing <= max(2, _ROUNDED * total)


_PRUNE: dict[str, Callable[[Weights], Callable[[], object]]] = {
    "lampfast": lambda weights: partial(lampfast.prune, weights, S),
    "textbook": lambda weights: partial(textbook.prune, weights, S),
    "torch-global-l1": lambda weights: contenders.global_magnitude(weights, S),  # other zeros
}


@pytest.mark.parametrize("name", _PRUNE)
@pytest.mark.parametrize("model", _MODELS)
def test_prune(model: str, name: str, make: Callable[[str], Weights], clock: Clock) -> None:
    weights = make(model)
    targets = contenders.clone(weights)
    prepare = contenders.restored(weights, targets, _PRUNE[name])
    clock(f"prune {model} to {S:.0%}", prepare, slow=name != "lampfast")
    if name == "lampfast":
        masks = lampfast.masks(weights, S)
        assert all(torch.equal(targets[each], weights[each] * masks[each]) for each in weights)


@pytest.mark.parametrize("name", ["lampfast", "textbook"])
@pytest.mark.parametrize("model", _MODELS)
def test_scores(model: str, name: str, make: Callable[[str], Weights], clock: Clock) -> None:
    weights = make(model)
    ours, theirs = partial(lampfast.scores, weights), partial(textbook.scores, weights)
    call = ours if name == "lampfast" else theirs
    found = clock(f"scores of {model}", lambda: call, slow=True)
    first = next(iter(weights))
    expected = lampfast.scores({first: weights[first]})[first]
    torch.testing.assert_close(found[first], expected, rtol=0.05, atol=0)  # the textbook rounds


# Memory beyond what is returned, each in a fresh process.


def in_fresh_process(name: str, shapes: Shapes) -> Callable[[], object]:
    """Sets up one call in the process that measures it, its code already loaded."""
    _PRUNE[name](measure.warm_up())()
    return _PRUNE[name](gaussian(shapes))


@pytest.mark.parametrize("name", _PRUNE)
def test_memory_of_prune(
    name: str,
    make: Callable[[str], Weights],
    record_property: Callable[[str, object], None],
    quick: bool,
) -> None:
    if quick and name != "lampfast":
        pytest.skip("only lampfast has a contract to keep")
    weights = make("resnet50")
    shapes = {each: tuple(weight.shape) for each, weight in weights.items()}
    peak = measure.peak_bytes(partial(in_fresh_process, name, shapes))
    if peak is None:
        pytest.skip("only Linux tells the peak of a process's memory")
    size = sum(weight.nbytes for weight in weights.values())
    record_property("memory", f"{name}: {peak / size:.1%} of the weights' bytes")
    if name == "lampfast":
        assert peak <= 0.05 * size + _MIB  # the contract
