"""What a callback puts back at each pruning: the weights that remain, and the optimizers' state."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import nn
from torch.optim import Optimizer

from lampfast._engine import changes, shards
from lampfast._engine.interrupts import Deferred
from lampfast._training import rewinding
from lampfast._training.kept_layers import KeptLayers

Rewind: TypeAlias = "Literal['initial'] | Mapping[str, Any] | None"
_States: TypeAlias = "list[dict[int, Any]]"  # of each optimizer, by the positions of parameters


class Restart:
    """A model's state to which each pruning rewinds, and the state of its optimizers then."""

    def __init__(self, model: Mapping[str, Any], optimizers: _States, *, is_saved: bool) -> None:
        self._model, self._optimizers, self._is_saved = model, optimizers, is_saved

    def put_back(
        self, model: nn.Module, optimizers: Sequence[Optimizer], choice: Mapping[str, Any]
    ) -> None:
        """Rewind a model, as `lampfast.rewind` does, and the state of its optimizers."""
        with Deferred():
            rewinding.rewind(model, self._model, **choice)
            _restore_zeros(model)  # of layers that others keep, which were put back whole
            for optimizer, states in zip(optimizers, self._optimizers, strict=True):
                _load(optimizer, states)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs; the model's state only where it was not the caller's."""
        return {"optimizers": self._optimizers} | ({"model": self._model} if self._is_saved else {})


def check(rewind: object) -> Rewind:
    """Check what a caller wants rewound.

    Raises:
        TypeError: It is no state.
        ValueError: It is another word than "initial".
    """
    if isinstance(rewind, str) and rewind != "initial":
        raise ValueError(
            f"rewind is {rewind!r}; pass 'initial', a state_dict of the model, or None"
        )
    if rewind is not None and not isinstance(rewind, str | Mapping):
        raise TypeError(
            f"rewind is a {type(rewind).__name__}; pass 'initial', a state_dict of the model, or "
            "None"
        )
    return cast(Rewind, rewind)


def begin(
    rewind: Rewind,
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    step: int,
    saved: Mapping[str, Any] | None,
) -> Restart | None:
    """What prunings of a training are to rewind to, which begins or goes on now.

    Args:
        rewind: What the caller wants.
        model: The model.
        optimizers: Those that train it.
        step: From which step on.
        saved: What `Restart.state_dict` gave when that step was saved, if there is such.

    Raises:
        ValueError: The initial state is wanted and not known, or a state is not the model's.
    """
    if rewind is None:
        return None
    if step == 0:
        states = [_states(optimizer) for optimizer in optimizers]
    else:
        states = saved["optimizers"] if saved else [{} for _ in optimizers]
    if len(states) != len(optimizers):
        raise ValueError(
            f"the saved state is of {len(states)} optimizers, and there are {len(optimizers)}; go "
            "on with those of the training that was saved"
        )
    if isinstance(rewind, Mapping):
        rewinding.check_fits(model.state_dict(keep_vars=True), rewind, set())
        return Restart(rewind, states, is_saved=False)
    if step == 0:
        is_saved = not shards.are_sharded(model.parameters())  # one rank has a part only
        return Restart(_copied(model), states, is_saved=is_saved)
    if saved is None or "model" not in saved:
        raise ValueError(
            f"rewind is 'initial', but the training goes on from step {step} and was saved without "
            "its initial values; pass them as rewind=state_dict, or begin it anew"
        )
    return Restart(saved["model"], states, is_saved=True)


def _copied(model: nn.Module) -> dict[str, Any]:
    """A copy of a model's state, in the memory of the host."""
    return {
        name: value.detach().to("cpu", copy=True)
        if isinstance(value, torch.Tensor)
        else copy.deepcopy(value)
        for name, value in model.state_dict().items()
    }


def _parameters(optimizer: Optimizer) -> Iterator[torch.Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _states(optimizer: Optimizer) -> dict[int, Any]:
    """A copy of an optimizer's state: of most there is none before the first step."""
    parameters = enumerate(_parameters(optimizer))
    return {i: copy.deepcopy(optimizer.state[it]) for i, it in parameters if it in optimizer.state}


def _load(optimizer: Optimizer, states: Mapping[int, Any]) -> None:
    """Give an optimizer a saved state; learning rates and the like stay."""
    optimizer.state.clear()
    for i, parameter in enumerate(_parameters(optimizer)):
        if i in states:
            optimizer.state[parameter] = {
                key: value.to(parameter.device, copy=True)
                if isinstance(value, torch.Tensor) and value.ndim
                else copy.deepcopy(value)  # counts of steps stay where they are
                for key, value in states[i].items()
            }


def _restore_zeros(model: nn.Module) -> None:
    """Restore all zeros that are kept in a model."""
    own = set(map(id, model.parameters()))
    for listener in changes.listening():
        if isinstance(listener, KeptLayers) and any(
            id(layer.weight) in own for layer in listener.layers
        ):
            listener.restore_all()
