"""What the callbacks for trainers share: a Pruner that follows the trainer's count of steps."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lampfast import _arguments, methods
from lampfast._training.pruner import Pruner
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
        include: Patterns = None,
        exclude: Patterns = None,
        stacked: Patterns = None,
    ) -> None:
        self.pruner: Pruner | None = None
        self._running: Pruner | None = None  # the same while its hooks are in place, else None
        methods.check(method)
        self._schedule = _arguments.schedule(schedule)
        self._before = 0.0
        self._choice = {"include": include, "exclude": exclude, "stacked": stacked}
        every = _arguments.integer("every", every, least=1)
        self._pruning: dict[str, Any] = {"every": every, "method": method, **self._choice}

    def remove(self) -> None:
        """Prune no more and leave no hook behind; the model stays as it is."""
        if self._running is not None:
            self._running.remove()
            self._running = None

    def _start(
        self,
        model: nn.Module,
        optimizers: Optimizer | Sequence[Optimizer],
        step: int,
        saved: Mapping[str, Any] | None,
    ) -> None:
        """Prune from a step on, with the state saved at that step if there is one."""
        self.remove()
        self.pruner = self._running = Pruner(model, optimizers, self._schedule, **self._pruning)
        if saved is not None and saved["step"] == step:
            try:
                self.pruner.load_state_dict(saved)
            except Exception:
                self.remove()
                raise
        else:
            # The training so far was dense, or without this callback: keep what is zero now, and
            # count on from the trainer's step, which is what the schedule is asked for.
            self.pruner._step = step
        self._step, self._before = step, self.pruner.report.sparsity

    def _advance(self, step: int) -> None:
        """Follow the trainer to a step, which may be several further, or the same."""
        while self._running is not None and self._step < step:
            self._running.step()
            self._step += 1

    def _sparsity(self) -> float:
        """What the model was last pruned to, or had before."""
        history = self.pruner.history if self.pruner is not None else []
        return history[-1][1] if history else self._before
