"""Whether all replicas of a model would prune alike, asked before any of them is changed.

Where all answer alike, which they find out by a few bytes, nothing else is exchanged.
Every rank answers whenever a step is one at which its Pruner looks at the schedule, be it that it
would prune nothing or that it has failed: the others wait for it.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed

Group: TypeAlias = "distributed.ProcessGroup | None"
T = TypeVar("T")


class _Answer(NamedTuple):
    """What one rank would do.

    Attributes:
        when: To which sparsity or by what, and after which step.
        masks: Their digests, by layer name.
        error: Why it cannot, if so.
    """

    when: str
    masks: dict[str, bytes]
    error: str | None


def exist(group: Group) -> bool:
    """Whether a process group has more ranks than this one."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    return distributed.get_world_size(group) > 1


def check_group(group: object, argument: str = "process_group") -> None:
    """Check that a process group can be one; errors call it as the argument is called.

    Raises:
        TypeError: It is none.
        ValueError: torch.distributed does not run, so that there are no groups.
    """
    if group is None:
        return
    if not (distributed.is_available() and distributed.is_initialized()):
        raise ValueError(
            f"{argument} is a {type(group).__name__}, but torch.distributed does not run; call "
            "torch.distributed.init_process_group first, or leave it out"
        )
    if not isinstance(group, distributed.ProcessGroup):
        raise TypeError(
            f"{argument} is a {type(group).__name__}; pass a torch.distributed.ProcessGroup, as "
            "new_group returns, of which this rank is one, or None for all ranks"
        )


def agreed(
    step: int,
    scheduled: Callable[[int], float | None],
    masks: Callable[[float], Mapping[str, torch.Tensor]],
    layers: Mapping[str, torch.Tensor],
    group: Group,
) -> float | None:
    """Compare what the ranks would do at a step.

    Args:
        step: The step, by this rank's count.
        scheduled: Gives the sparsity to prune to at a step, None for no pruning; may raise.
        masks: Gives this rank's masks for a sparsity; may raise.
        layers: What the masks are of.
        group: The ranks that call this, None for all.

    Returns:
        What `scheduled` gave, on all ranks.

    Raises:
        RuntimeError: On all ranks, if their answers differ; on the others, if one rank raised.
        Exception: What `scheduled` or `masks` raised.
    """
    error: Exception | None = None
    sparsity, when = None, f"after step {step}"
    try:
        sparsity = scheduled(step)
        when = f"{'nothing' if sparsity is None else f'to sparsity {sparsity}'} {when}"
    except Exception as raised:  # the others wait for this rank's answer, whatever it is
        error = raised

    def wanted() -> Mapping[str, torch.Tensor]:
        if error is not None:
            raise error
        return {} if sparsity is None else masks(sparsity)

    agree(when, wanted, layers, group)
    return sparsity


def agree(
    when: str,
    masks: Callable[[], Mapping[str, torch.Tensor]],
    layers: Mapping[str, torch.Tensor],
    group: Group,
) -> None:
    """Compare masks of the ranks by digests: by one number of each, and by layer if they differ.

    Args:
        when: What the masks are for: to which sparsity or by what, and after which step.
        masks: Gives those of this rank, none for no pruning; may raise.
        layers: What the masks are of.
        group: The ranks that call this, None for all.

    Raises:
        RuntimeError: On all ranks, if their answers differ; on the others, if one rank raised.
        Exception: What `masks` raised.
    """
    error: Exception | None = None
    try:
        digests = {name: _digest(np.packbits(_array(mask))) for name, mask in masks().items()}
        own = _Answer(when, digests, None)
    except Exception as raised:
        error, own = raised, _Answer(when, {}, f"{type(raised).__name__}: {raised}")
    is_same = _are_equal(own, layers, group)
    answers = {} if is_same else _exchanged(own, layers, group)
    if error:
        raise error
    for rank, answer in answers.items():
        if answer.error:
            raise RuntimeError(
                f"rank {rank} cannot prune, so no rank has pruned ({answer.when}): {answer.error}"
            )
    if any(answer != own for answer in answers.values()):
        weights = {name: _digest(_array(layer)) for name, layer in layers.items()}
        raise RuntimeError(_difference(answers, _exchanged(weights, layers, group)))


def _are_equal(own: _Answer, layers: Mapping[str, torch.Tensor], group: Group) -> bool:
    """Whether all ranks have one answer, by 64 bits of it: far less to wait for than the answers.

    The largest number of all ranks is this rank's, and so is the smallest.
    """
    number = int.from_bytes(_digest(np.frombuffer(repr(own).encode(), np.uint8))[:8], "little") >> 1
    backends = distributed.get_backend_config(group)  # such as "cpu:gloo,cuda:nccl"
    device = "cpu" if "cpu:" in backends else backends.partition(":")[0]
    with torch.cuda.device_of(next(iter(layers.values()))):
        numbers = torch.tensor([number, -number], device=device)
        distributed.all_reduce(numbers, distributed.ReduceOp.MAX, group)
    return bool(numbers.tolist() == [number, -number])


def _exchanged(own: T, layers: Mapping[str, torch.Tensor], group: Group) -> dict[int, T]:
    """What every rank has, by rank."""
    ranks = distributed.get_process_group_ranks(group or distributed.group.WORLD)
    gathered = [own] * len(ranks)
    # Some backends exchange from the current device, which need not be that of the replica.
    with torch.cuda.device_of(next(iter(layers.values()))):
        distributed.all_gather_object(gathered, own, group)
    return dict(zip(ranks, gathered, strict=True))


def _array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Its bytes, in an order that is the same for all memory formats."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


def _digest(array: npt.NDArray[Any]) -> bytes:
    return hashlib.blake2b(array.data, digest_size=16).digest()


def _difference(answers: Mapping[int, _Answer], weights: Mapping[int, dict[str, bytes]]) -> str:
    """Which ranks differ from most others, and in what."""
    everyone = list(answers.values())
    usual = max(answers, key=lambda rank: everyone.count(answers[rank]))  # the lowest, if equal
    odd = [rank for rank in answers if answers[rank] != answers[usual]]
    mine, others = weights[odd[0]], weights[usual]
    differing = [name for name in others | mine if mine.get(name) != others.get(name)]
    if answers[odd[0]].when != answers[usual].when:
        where = f"rank {odd[0]} prunes {answers[odd[0]].when}, the others {answers[usual].when}"
    elif differing:
        where = f"{answers[usual].when}, layer {differing[0]!r} is the first whose weights differ"
    else:
        where = f"{answers[usual].when}, by other masks, though their weights are the same"
    more = ", …" if len(odd) > 8 else ""
    return (
        f"replicas have diverged: rank{'s' * (len(odd) > 1)} {', '.join(map(str, odd[:8]))}{more} "
        f"of {len(answers)} would prune other weights than the rest ({where}), so no rank has "
        "pruned. Replicas hold the same weights: start all ranks from one state, train them "
        "through DistributedDataParallel, and step their Pruners together. Ranks with models of "
        "their own need a process_group of their own"
    )
