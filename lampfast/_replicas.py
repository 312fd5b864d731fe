"""Whether all replicas of a model would prune alike, asked before any of them is changed."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import distributed

Group: TypeAlias = "distributed.ProcessGroup | None"


class _Proposal(NamedTuple):
    """What one rank would do.

    Attributes:
        when: At which step, to which sparsity.
        digests: By layer name, of the mask.
        error: Why it cannot, if so.
    """

    when: str
    digests: dict[str, bytes]
    error: str | None


def exist(group: Group) -> bool:
    """Whether a process group has more ranks than this one."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    return distributed.get_world_size(group) > 1


def check(
    when: str,
    masks: Callable[[], Mapping[str, torch.Tensor]],
    group: Group,
    place: torch.Tensor,
) -> None:
    """Compare masks over the ranks of a group, by digests in one small exchange.

    Args:
        when: At which step, to which sparsity: what the ranks have to agree on too.
        masks: Gives the masks of this rank; may raise.
        group: The ranks that call this, None for all.
        place: A tensor on the device that this rank exchanges from.

    Raises:
        RuntimeError: On all ranks, if their answers differ, or on the others, if one raised.
        Exception: What `masks` raised.
    """
    error: Exception | None = None
    try:
        own = _Proposal(when, {name: _digest(mask) for name, mask in masks().items()}, None)
    except Exception as raised:  # the others wait for this rank's answer, whatever it is
        error, own = raised, _Proposal(when, {}, f"{type(raised).__name__}: {raised}")
    ranks = distributed.get_process_group_ranks(group or distributed.group.WORLD)
    gathered: list[_Proposal] = [own] * len(ranks)
    with torch.cuda.device_of(place):
        distributed.all_gather_object(gathered, own, group)
    if error:
        raise error
    proposals = dict(zip(ranks, gathered, strict=True))
    for rank, proposal in proposals.items():
        if proposal.error:
            raise RuntimeError(
                f"rank {rank} cannot prune, so no rank has pruned ({when}): {proposal.error}"
            )
    if any(proposal != own for proposal in gathered):
        raise RuntimeError(_difference(proposals))


def _digest(mask: torch.Tensor) -> bytes:
    return hashlib.blake2b(np.packbits(mask.cpu().numpy()).tobytes(), digest_size=16).digest()


def _difference(proposals: Mapping[int, _Proposal]) -> str:
    """Which ranks differ from most others, and where first."""
    everyone = list(proposals.values())
    usual = max(everyone, key=everyone.count)  # of equally many, that of the lowest rank
    odd = [rank for rank, proposal in proposals.items() if proposal != usual]
    other = proposals[odd[0]]
    if other.when != usual.when:
        where = f"rank {odd[0]} prunes {other.when}, the others {usual.when}"
    else:
        names = [*usual.digests, *other.digests]
        differing = (n for n in names if usual.digests.get(n) != other.digests.get(n))
        where = f"{usual.when}, layer {next(differing)!r} is the first whose masks differ"
    return (
        f"replicas have diverged: {_listed(odd)} of {len(proposals)} would prune other weights "
        f"than the rest ({where}), so no rank has pruned. Replicas hold the same weights: start "
        "all ranks from one state, train them through DistributedDataParallel, and step their "
        "Pruners together. Ranks with models of their own need a process_group of their own"
    )


def _listed(ranks: Sequence[int]) -> str:
    more = ", …" if len(ranks) > 8 else ""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks[:8]))}{more}"
