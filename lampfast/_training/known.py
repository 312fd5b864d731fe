"""What this process knows of how layers came to be zero: which it pruned, and what it rewound.

A layer that is zero throughout may have been pruned, or have started so, as the B of LoRA and
zero-initialised heads do. Zeros of the second kind have to be free to train.
"""

from collections.abc import Sequence
from typing import cast
from weakref import ref

import torch
from torch.optim import Optimizer

from lampfast._engine import changes
from lampfast._engine.views import View, Weight


class _Known:
    """A listener of `changes`. Entries are by id; a weak reference tells whether it is still that.

    As tensors compare element by element, they cannot be the keys themselves.
    """

    def __init__(self) -> None:
        self._pruned: dict[int, ref[Weight]] = {}
        self._limit = 1000  # of entries, after which those of tensors that are gone go
        self._masks: dict[int, tuple[ref[torch.Tensor], torch.Tensor]] = {}

    def pruned(self, layers: Sequence[View]) -> None:
        """Remember that these layers were pruned; what was rewound before does not count."""
        weights = [layer.weight for layer in layers]
        self._pruned.update(zip(map(id, weights), map(ref, weights), strict=True))
        if len(self._pruned) > self._limit:
            self._pruned = {
                key: found for key, found in self._pruned.items() if found() is not None
            }
            self._limit = 2 * len(self._pruned) + 1000
        if self._masks:
            for weight in weights:
                self._masks.pop(id(weight), None)

    def stepped(self, optimizer: Optimizer) -> None:
        """Nothing: a step prunes nothing."""

    def was_pruned(self, weight: Weight) -> bool:
        """Whether `lampfast.prune` has had this very tensor among its layers."""
        found = self._pruned.get(id(weight))
        return found is not None and found() is weight

    def rewound_to_zero(self, weight: torch.Tensor, mask: torch.Tensor) -> None:
        """Remember which weights remain of a layer whose saved values are all zero."""
        self._masks[id(weight)] = ref(weight), mask

    def mask(self, weight: torch.Tensor) -> torch.Tensor | None:
        """Which weights of a layer remain, though all are zero; None if that is not known."""
        found = self._masks.get(id(weight))
        if found is None or found[0]() is not weight or found[1].shape != weight.shape:
            return None
        return found[1]


layers = _Known()
changes.listen(cast(changes.Listener, layers))
