"""What a rank has of a weight that is sharded over processes: a plain tensor in its own memory."""

import sys
from typing import Any


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
