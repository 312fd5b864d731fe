"""Python's part of a call is linear in the layers: it calls as much for each one, however many."""

import gc
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from strategies import Model

import lampfast


def separate(layers: int) -> Model:
    return {str(i): torch.randn(8) for i in range(layers)}


def rows(layers: int) -> Model:
    return dict(zip(map(str, range(layers)), torch.randn(layers, 8).unbind(0), strict=True))


def tied(layers: int) -> Model:
    weights = [torch.randn(8) for _ in range(layers // 2)]
    return {str(i): weights[i // 2].detach() for i in range(layers)}


def channels_last(layers: int) -> Model:
    weights = [torch.randn(2, 2, 2, 2) for _ in range(layers)]
    return {str(i): w.contiguous(memory_format=torch.channels_last) for i, w in enumerate(weights)}


def masks_again(model: Model) -> Callable[[], Any]:
    out = lampfast.masks(model, 0.5)
    return lambda: lampfast.masks(model, 0.5, out=out)


VERBS: dict[str, Callable[[Model], Callable[[], Any]]] = {
    "masks": lambda model: lambda: lampfast.masks(model, 0.5),
    "masks again": masks_again,
    "masks, uniform": lambda model: lambda: lampfast.masks(model, 0.5, method="uniform"),
    "prune": lambda model: lambda: lampfast.prune(model, 0.5),
    "prune by importance": lambda model: (
        lambda: lampfast.prune(
            model,
            0.5,
            importance={layer.name: torch.ones(8) for layer in lampfast.report(model).layers},
        )
    ),
    "report": lambda model: lambda: lampfast.report(model).kept,
    "scores": lambda model: lambda: lampfast.scores(model),
}


@pytest.mark.parametrize("make", [separate, rows, tied, channels_last])
@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_linear(verb: Callable[[Model], Callable[[], Any]], make: Callable[[int], Model]) -> None:
    if make is channels_last and verb is VERBS["prune by importance"]:
        pytest.skip("its importances are vectors")
    verb(make(2))()  # whatever is set up once
    few, more, most = (_calls(verb(make(layers))) for layers in (40, 80, 120))
    assert more - few == most - more
    assert more > few


def _calls(function: Callable[[], Any]) -> int:
    """How many functions, of Python or of C, Python code calls meanwhile."""
    count = 0

    def see(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    gc.disable()  # what runs at its collections would count too
    sys.setprofile(see)
    try:
        function()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count
