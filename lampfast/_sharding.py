"""Finds parameters that are only part of a layer, or for a while: those of sharded models."""

import sys
from collections.abc import Iterator, Mapping

import torch
from torch import distributed, nn

_FLAT = (
    "as parameters that are sharded over processes have; put it together first, under "
    "FullyShardedDataParallel.summon_full_params(model) or deepspeed.zero.GatheredParameters(...), "
    "prune there on every rank, or prune the model before it is sharded"
)
_SUMMON = (
    "is one of FullyShardedDataParallel's views of its flat parameter; prune under "
    "FullyShardedDataParallel.summon_full_params(model), on every rank alike, or before the model "
    "is wrapped"
)
_TEMPORARY = (
    "is what a forward pass of fully_shard (FSDP2) gathered for a while, so zeros in it would be "
    "lost when it is sharded again; prune the model before fully_shard"
)


def flat_problem(parameter: nn.Parameter) -> str:
    """Why the weight of a layer that needs a matrix has less than two dimensions.

    Example:
        >>> flat_problem(nn.Parameter(torch.empty(0)))[:14]
        'has shape (0,)'
    """
    return f"has shape {tuple(parameter.shape)}, {_FLAT}"


def refuse(model: object, layers: Mapping[str, object]) -> None:
    """Check that no layer is a view that FullyShardedDataParallel or fully_shard made.

    Raises:
        ValueError: One is.
    """
    if not isinstance(model, nn.Module):
        return
    problems: dict[int, str] = {}
    for module in _made_by("FullyShardedDataParallel", model):
        problems.update((id(view), _SUMMON) for view in _views(module))
    for module in fully_sharded(model):
        problems.update((id(gathered), _TEMPORARY) for gathered in _gathered(module))
    for name, layer in layers.items() if problems else ():
        if id(layer) in problems:
            raise ValueError(f"layer {name!r} {problems[id(layer)]}")


def fully_sharded(model: nn.Module) -> Iterator[nn.Module]:
    """The modules of a model that fully_shard (FSDP2) has made its own."""
    return _made_by("FSDPModule", model)


def _made_by(name: str, model: nn.Module) -> Iterator[nn.Module]:
    """The modules of a class of torch.distributed.fsdp, if this torch has it and ranks run."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # whoever shards has imported it
    if fsdp is None or not (distributed.is_available() and distributed.is_initialized()):
        return
    for module in model.modules():
        if isinstance(module, getattr(fsdp, name, ())):
            yield module


def _views(module: nn.Module) -> Iterator[nn.Parameter]:
    """What FSDP shows of its flat parameter, unless it is put together or whole on every rank."""
    is_whole = getattr(module, "sharding_strategy", None) == _strategy("NO_SHARD")
    state = getattr(module, "training_state", None)
    if is_whole or getattr(state, "name", None) == "SUMMON_FULL_PARAMS":
        return
    for parameter in module.parameters():
        if getattr(parameter, "_fsdp_flattened", False):
            yield parameter


def _strategy(name: str) -> object:
    from torch.distributed.fsdp import ShardingStrategy

    return ShardingStrategy[name]


def _gathered(module: nn.Module) -> Iterator[torch.Tensor]:
    """The plain parameters that fully_shard keeps between a forward pass and the next sharding."""
    state = module._get_fsdp_state()  # type: ignore[operator]
    groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
    for group in groups:
        for shard in group.fsdp_params if group is not None else ():
            if (parameter := getattr(shard, "_unsharded_param", None)) is not None:
                yield parameter
