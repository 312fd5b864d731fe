"""What a rank has of a weight that is sharded over processes, and which ranks have the rest."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lampfast._engine.communicator import Communicator


def part(weight: Any) -> Any:
    """The local tensor of a DTensor, and any other weight itself.

    Example:
        >>> import torch
        >>> weight = torch.ones(3)
        >>> part(weight) is weight
        True
    """
    return weight._local_tensor if is_sharded(weight) else weight


def is_sharded(weight: object) -> bool:
    """Whether a weight is a DTensor, of which other ranks have other parts."""
    tensors = sys.modules.get("torch.distributed.tensor")  # whoever shards has imported it
    return tensors is not None and isinstance(weight, tensors.DTensor)


def are_sharded(weights: Iterable[object]) -> bool:
    """Whether any of the weights is; takes little time for thousands."""
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and any(
        issubclass(kind, tensors.DTensor) for kind in set(map(type, weights))
    )


def ranks_of(weights: Mapping[str, Any]) -> Communicator | None:
    """The ranks that have parts of weights, where some are sharded."""
    if not are_sharded(weights.values()):
        return None
    from lampfast._engine.sharded import communicator_of

    return communicator_of(weights, None)


def together(ranks: Communicator | None, question: object = None) -> AbstractContextManager[object]:
    """A section that fails on all ranks if it does on one, where there are several."""
    return nullcontext() if ranks is None else ranks.together(question)
