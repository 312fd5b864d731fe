"""Weights that another thread moves during a call: what the engine works on is not freed."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import SGD

import lampfast
from lampfast import _core

Masks = Mapping[str, torch.Tensor]
VERBS: dict[str, tuple[str, Callable[[nn.Parameter, lampfast.KeptZeros, Masks], object]]] = {
    "prune": ("prune", lambda weight, kept, masks: lampfast.prune([weight], 0.5)),
    "apply": ("prune_zeros", lambda weight, kept, masks: lampfast.apply([weight], masks)),
    "masks": ("masks", lambda weight, kept, masks: lampfast.masks([weight], 0.5)),
    "scores": ("score", lambda weight, kept, masks: lampfast.scores([weight])),
    "report": ("zero_thresholds", lambda weight, kept, masks: lampfast.report([weight])),
    "update": ("pack", lambda weight, kept, masks: kept.update()),
    "masks of update": ("apply_packed_masks", lambda weight, kept, masks: kept.update(masks)),
    "restore": ("apply_packed_masks", lambda weight, kept, masks: kept.restore()),
}


def _storage(weight: torch.Tensor) -> Any:
    """A weak reference to it."""
    return StorageWeakRef(weight.untyped_storage())  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(("call", "verb"), VERBS.values(), ids=VERBS)
def test_memory_lives_until_the_call_returns(
    call: str,
    verb: Callable[[nn.Parameter, lampfast.KeptZeros, Masks], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = nn.Parameter(torch.randn(64))
    kept = lampfast.keep_zeros([weight], SGD([weight], lr=0.1))
    masks = {"0": torch.arange(64) < 32}
    engine, memory = getattr(_core, call), _storage(weight)
    seen = []

    def moving(*args: Any) -> Any:
        weight.data = torch.randn(64, dtype=torch.float64)  # as model.double() does
        seen.append(memory.expired())
        return engine(*args)

    with monkeypatch.context() as patched:
        patched.setattr(_core, call, moving)
        verb(weight, kept, masks)
    assert seen == [False]
    assert memory.expired(), "and no longer"
    assert kept
