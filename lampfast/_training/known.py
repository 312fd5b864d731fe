"""What this process knows of how layers came to be zero: which it pruned, and what it rewound.

A layer that is zero throughout may have been pruned, or have started so, as the B of LoRA and
zero-initialised heads do. Zeros of the second kind have to be free to train.
"""

from collections.abc import Sequence
from functools import partial
from weakref import ref

import torch
from torch.optim import Optimizer

from lampfast._engine import changes
from lampfast._engine.views import View, Views, Weight


class _Known:
    """A listener of `changes`. Entries are by id, as tensors compare element by element."""

    def __init__(self) -> None:
        self._pruned: dict[int, ref[Weight]] = {}
        self._masks: dict[int, tuple[ref[torch.Tensor], torch.Tensor]] = {}

    def pruned(self, layers: Sequence[View]) -> None:
        """Remember that these layers were pruned; what was rewound before does not count."""
        weights, entries = Views.of(layers).weights, self._pruned
        for weight in [weight for weight in weights if id(weight) not in entries]:
            key = id(weight)
            entries[key] = ref(weight, partial(self._forget, key))
        if self._masks:
            for weight in weights:
                self._masks.pop(id(weight), None)

    def pruning(self, layers: Sequence[View]) -> None:
        """Nothing: `pruned` follows."""

    def stepping(self, optimizer: Optimizer) -> None:
        """Nothing: a step prunes nothing."""

    def _forget(self, key: int, gone: object) -> None:
        self._pruned.pop(key, None)
        self._masks.pop(key, None)

    def stepped(self, optimizer: Optimizer) -> None:
        """Nothing: a step prunes nothing."""

    def was_pruned(self, weight: Weight) -> bool:
        """Whether `lampfast.prune` has had this very tensor among its layers."""
        return id(weight) in self._pruned

    def rewound_to_zero(self, weight: torch.Tensor, mask: torch.Tensor) -> None:
        """Remember which weights remain of a layer whose saved values are all zero."""
        key = id(weight)
        self._masks[key] = ref(weight, partial(self._forget, key)), mask

    def mask(self, weight: torch.Tensor) -> torch.Tensor | None:
        """Which weights of a layer remain, though all are zero; None if that is not known."""
        found = self._masks.get(id(weight))
        if found is None or found[0]() is not weight or found[1].shape != weight.shape:
            return None
        return found[1]


layers = _Known()
changes.listen(layers)
