"""What the callbacks for trainers share: a Pruner that follows the trainer's count of steps."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import nn
from torch.optim import Optimizer

from lampfast import _arguments, _sharding
from lampfast._blocks import Block
from lampfast._training import averages, restarts
from lampfast._training.averages import Copies, Copy
from lampfast._training.pruner import Pruner, how_checked
from lampfast._training.restarts import Restart, Rewind
from lampfast.methods import Method
from lampfast.parameters import Patterns
from lampfast.schedules import Schedule


class PrunerCallback:
    """The part of a callback that knows no trainer."""

    def __init__(
        self,
        schedule: Schedule,
        *,
        every: int = 1,
        method: Method = "lamp",
        pattern: str | None = None,
        dim: int | None = None,
        block: Block | None = None,
        include: Patterns = None,
        exclude: Patterns = None,
        stacked: Patterns = None,
        copies: Copies | Callable[[], Copies] = None,
        rewind: Rewind = None,
        mask_gradients: bool = False,
    ) -> None:
        self.pruner: Pruner | None = None
        self._running: Pruner | None = None  # the same while its hooks are in place, else None
        how = how_checked(schedule, method, pattern, dim, block)
        self._schedule = _arguments.schedule(schedule)
        self._before = 0.0
        self._copies = copies
        if not _is_function(copies):
            self._given_copies()  # they are checked before any training
        self._rewind = restarts.check(rewind)
        self._restart: Restart | None = None
        self._choice = {"include": include, "exclude": exclude, "stacked": stacked}
        every = _arguments.integer("every", every, least=1)
        self._pruning: dict[str, Any] = {"every": every, **how, **self._choice}
        self._pruning["mask_gradients"] = _arguments.flag("mask_gradients", mask_gradients)

    def remove(self) -> None:
        """Prune no more and leave no hook behind; the model stays as it is."""
        if self._running is not None:
            self._running.remove()
            self._running = self._restart = None

    def _start(
        self,
        model: nn.Module,
        optimizers: Optimizer | Sequence[Optimizer],
        step: int,
        saved: Mapping[str, Any] | None,
        averages_seen: Sequence[nn.Module] = (),
    ) -> None:
        """Prune from a step on, with the state saved at that step if there is one."""
        self.remove()
        _reshard(model)
        given = optimizers if isinstance(optimizers, Sequence) else [optimizers]
        if saved is not None and saved["step"] != step:
            saved = None
        start = saved and saved.get("start")
        restart = restarts.begin(self._rewind, model, given, step, start)
        is_told = self._copies is not None or averages_seen
        copies = [*self._given_copies(), *averages_seen] if is_told else None
        self.pruner = self._running = Pruner(
            model, optimizers, self._schedule, copies=copies, **self._pruning
        )
        self._restart, self._model, self._optimizers = restart, model, given
        if saved is not None:
            try:
                self.pruner.load_state_dict({k: v for k, v in saved.items() if k != "start"})
            except Exception:
                self.remove()
                raise
        else:
            # The training so far was dense, or without this callback: keep what is zero now, and
            # count on from the trainer's step, which is what the schedule is asked for.
            self.pruner._step = step
        self._step, self._before = step, self.pruner.report.sparsity

    def _given_copies(self) -> Sequence[Copy]:
        """The copies that the caller has passed, or that the function gives that was passed."""
        given = cast(Any, self._copies)
        return averages.each(given() if _is_function(given) else given)

    def _advance(self, step: int) -> None:
        """Follow the trainer to a step, which may be several further, or the same."""
        while self._running is not None and self._step < step:
            prunings = len(self._running.history)
            if self._running._is_sharded():
                _reshard(self._model)
            self._running.step()
            self._step += 1
            if self._restart is not None and len(self._running.history) > prunings:
                self._restart.put_back(self._model, self._optimizers, self._choice)

    def _state(self, running: Pruner) -> dict[str, Any]:
        """What a checkpoint needs."""
        state = running._packed_state()
        return state if self._restart is None else {**state, "start": self._restart.state_dict()}

    def _sparsity(self) -> float:
        """What the model was last pruned to, or had before."""
        history = self.pruner.history if self.pruner is not None else []
        return history[-1][1] if history else self._before


def _reshard(model: nn.Module) -> None:
    """Shard again what fully_shard has left gathered after a pass without gradients."""
    for module in _sharding.fully_sharded(model):
        cast(Any, module).reshard()


def _is_function(copies: object) -> bool:
    """Whether it gives copies, and is none."""
    return callable(copies) and not isinstance(copies, nn.Module)
