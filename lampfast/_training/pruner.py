"""Pruning on a schedule while a model trains."""

from __future__ import annotations  # so that help() shows Model, not all that it may be

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from math import isclose
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch.optim import Optimizer

from lampfast import _arguments, _blocks, _patterns, methods, parameters
from lampfast._blocks import Block
from lampfast._engine import shards
from lampfast._engine.interrupts import Deferred
from lampfast._engine.stacks import Layers
from lampfast._training import averages, hooks, replicas, zeros
from lampfast._training.averages import Copies
from lampfast.methods import Method
from lampfast.parameters import Model, Patterns
from lampfast.pruning import masks, pruned, report
from lampfast.reports import Report
from lampfast.schedules import Schedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

    from lampfast._engine.communicator import Communicator


class Pruner:
    """Prunes a model to a schedule while it trains, and keeps its zeros zero in between.

    Example:
        >>> import lampfast, torch
        >>> model = torch.nn.Linear(10, 10)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> pruner = lampfast.Pruner(model, optimizer, lampfast.schedules.cubic(0.9, 80), every=20)
        >>> for step in range(100):
        ...     model(torch.randn(8, 10)).square().mean().backward()
        ...     optimizer.step()
        ...     pruner.step()
        ...     optimizer.zero_grad()
        >>> [(step, round(sparsity, 2)) for step, sparsity in pruner.history]
        [(20, 0.52), (40, 0.79), (60, 0.89), (80, 0.9)]
        >>> pruner.report
        Report(numel=100, kept=10, sparsity=0.9000, layers=1)

    Call `step` once after every `optimizer.step()`: where gradients are accumulated that is once
    per accumulated batch, with several optimizers once after all of them. A step that a
    GradScaler skips counts; one that an optimizer of accelerate leaves out while gradients
    accumulate does not, so that `step` may follow it at every batch. Schedulers of learning rates
    may step before or after.

    Where torch.distributed runs several ranks, all of them make a Pruner of the same model and
    step it together. At each look at the schedule they exchange what they are about to do, and
    before a pruning compare their masks, and raise an error instead if replicas have diverged or
    one of them has failed; the schedule has to give all of them the same.

    What is zero when the Pruner is made is kept at zero from then on, as by `keep_zeros`; the first
    step warns of layers that are zero throughout. A layer that is all zero when others are pruned,
    as one that was rewound to zeros, is pruned no further then.

    Args:
        model: A module, a mapping of names to torch tensors or numpy arrays, a sequence of either,
            or (module, "weight") pairs, as `lampfast.prune` describes them.
        optimizers: The optimizer that trains the layers, or a sequence of several; those that
            accelerate has prepared, too.
        schedule: Gives the sparsity, a fraction 0.0 to 1.0, for the number of steps done, counted
            from 1: one of `lampfast.schedules`, or any callable that never goes down. An int is
            no count of weights here: 0 is 0.0 and 1 is 1.0.
        every: How many steps lie between one look at the schedule and the next. The model is
            pruned where the schedule rises, unless it is sparser already. What a schedule reaches
            between two looks waits for the next one, so let its last step be one of them.
        method: How the sparsity is shared among the layers: "lamp", "global", "uniform", "uniform+"
            or "erk".
        pattern: ":m", as ":8": each layer keeps n of m, with its own n, for the sparsity that the
            schedule gives. (For n:m, prune once and call `keep_zeros`.)
        dim: The dimension along which the groups of a pattern lie, if it is not that of the inputs.
        block: Tiles that go or stay together: (r, c) for r outputs by c inputs, "row" for whole
            outputs, "column" for whole inputs. The sparsity is then reached up to a tile.
        include: Glob pattern or patterns over the parameters' names: these are the layers, in the
            place of those by default.
        exclude: Glob pattern or patterns over the same names: these are left out.
        stacked: Glob pattern or patterns over the names of parameters that hold several layers, one
            in each slice along the first dimension.
        copies: Averages of the model, which are pruned with it.
        masks: Which weights are kept from the beginning. See `update`.
        mask_gradients: Whether gradients of pruned weights are set to zero too, for the clipping of
            norms and for optimizers that mix gradients, such as Muon and Adafactor.
        process_group: The ranks that hold replicas of the model; None for all ranks. A rank with a
            model of its own passes a group of itself alone.
        group: The ranks that hold the model, where some layers are on some of them only, as
            pipeline stages are; each of them makes a Pruner of what it has. What has one name is
            one layer, and what several hold alike is counted once.

    Raises:
        TypeError: The model, a layer or an argument has a type, dtype, layout or device that is not
            taken.
        ValueError: An argument is out of range, a value is NaN or infinite, a pattern matches
            nothing, or a layer cannot be pruned; `every` is below 1; a layer belongs to none of the
            optimizers; or a process group is given and torch.distributed does not run.
    """

    def __init__(
        self,
        model: Model,
        optimizers: Optimizer | Sequence[Optimizer],
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
        copies: Copies = None,
        masks: Mapping[str, torch.Tensor] | None = None,
        mask_gradients: bool = False,
        process_group: replicas.Group = None,
        group: replicas.Group = None,
    ) -> None:
        self._schedule = _arguments.schedule(schedule)
        self._every = _arguments.integer("every", every, least=1)
        replicas.check_group(process_group)
        replicas.check_group(group, "group")
        self._model, self._group, self._holders = model, process_group, group
        self._how = how_checked(schedule, method, pattern, dim, block)
        self._choice: dict[str, Any] = {"include": include, "exclude": exclude, "stacked": stacked}
        found = parameters.find(model, **self._choice).layers
        averages.warn_of_those_inside(model, found.wholes, copies)
        self._layers: dict[str, Any] = found.wholes
        self._step = 0
        self._history: list[tuple[int, float]] = []
        empty = _all_zero(self.report)
        self._empty = empty if masks is None else []  # masks tell what is free to train
        self._shapes = {name: layer.shape for name, layer in self._layers.items()}
        self._zeros = zeros.held(found, optimizers, masks, copies, mask_gradients=mask_gradients)
        self._is_accumulating = hooks.accumulation(optimizers)
        self._removed = False

    @property
    def report(self) -> Report:
        """What there is now, read from the weights."""
        return report(self._model, group=self._holders, **self._choice)

    @property
    def history(self) -> list[tuple[int, float]]:
        """The prunings: after which step, and to which sparsity."""
        return list(self._history)

    def plot(self, figure: Figure | SubFigure | None = None) -> Figure:
        """Draw the sparsity after each pruning, and what the schedule says, up to the last step.

        Example:
            >>> import lampfast, torch
            >>> model = torch.nn.Linear(10, 10)
            >>> optimizer = torch.optim.SGD(model.parameters())
            >>> pruner = lampfast.Pruner(model, optimizer, lampfast.schedules.cubic(0.9, 80))
            >>> for step in range(100):
            ...     pruner.step()
            >>> pruner.plot().axes[0].get_ylabel()
            'sparsity'

        Args:
            figure: A figure of matplotlib, or a part of one, to draw in; None for a new one, which
                a notebook shows by itself.

        Returns:
            The figure; save it with `figure.savefig("sparsity.pdf")`.

        Raises:
            ModuleNotFoundError: matplotlib, the extra `plot`, is not installed.
        """
        from lampfast import _plotting

        return _plotting.sparsity_over_steps(self._history, self._schedule, figure, self._step)

    def step(self) -> None:
        """Count one optimizer step; prune if it is time.

        Raises:
            TypeError: The schedule gives something other than a number.
            ValueError: The schedule goes down or leaves 0.0 to 1.0; a weight is NaN or infinite;
                or the model has other layers than it had. The step is not counted, and no weight
                is changed.
            RuntimeError: Replicas have diverged, or another rank could not prune, as its schedule
                or its weights have failed: no rank has changed a weight. Or this Pruner was
                removed.
        """
        if self._removed:
            raise RuntimeError("this Pruner was removed; make a new one to go on pruning")
        if self._is_accumulating():
            return
        if self._step == 0:  # in a resumed run a layer may rightly have been pruned to nothing
            self._warn_of_empty_layers()
        step = self._step + 1
        if step % self._every == 0:
            sparsity = self._agreed(step)
            if sparsity is not None:
                self._prune(step, sparsity)
        self._step = step

    def update(self, masks: Mapping[str, torch.Tensor]) -> None:
        """Keep other weights from now on, as `KeptZeros.update` does: some may grow again.

        The schedule goes on, and prunes first what is still zero when it rises: grow weights
        after such a step, not before it.

        Example:
            >>> import lampfast, torch
            >>> weight = torch.nn.Parameter(torch.tensor([3.0, 0.0, 2.0]))
            >>> optimizer = torch.optim.SGD([weight])
            >>> pruner = lampfast.Pruner([weight], optimizer, lampfast.schedules.constant(1 / 3))
            >>> pruner.update({"0": torch.tensor([True, True, False])})
            >>> weight.tolist()
            [3.0, 0.0, 0.0]

        Args:
            masks: By parameter name a bool tensor of its shape, True where the weight may be other
                than zero. Where there are several ranks, the same on all of them.

        Raises:
            TypeError: The masks are not a mapping of names to bool tensors, or a layer is no longer
                one that can be pruned.
            ValueError: The names or shapes are not those of the layers.
            RuntimeError: Ranks have other masks than the rest, or another rank could not take its
                own: no rank has changed a weight. Or this Pruner was removed.
        """
        if self._removed:
            raise RuntimeError("this Pruner was removed; make a new one to go on pruning")
        if replicas.exist(self._group) and not self._is_sharded():
            replicas.agree(
                f"by update() after step {self._step}",
                lambda: self._zeros._checked_masks(masks),
                self._layers,
                self._group,
            )
        self._zeros._take(masks)

    def dense_gradients(self) -> AbstractContextManager[None]:
        """Leave the gradients that come meanwhile whole, as `KeptZeros.dense_gradients` does.

        Example:
            >>> import lampfast, torch
            >>> weight = torch.nn.Parameter(torch.tensor([3.0, 0.0]))
            >>> optimizer = torch.optim.SGD([weight])
            >>> schedule = lampfast.schedules.constant(0.5)
            >>> pruner = lampfast.Pruner([weight], optimizer, schedule, mask_gradients=True)
            >>> with pruner.dense_gradients():
            ...     weight.sum().backward()
            >>> weight.grad
            tensor([1., 1.])

        Raises:
            RuntimeError: This Pruner was removed.
        """
        if self._removed:
            raise RuntimeError("this Pruner was removed; make a new one to go on pruning")
        return self._zeros.dense_gradients()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs besides the model's and the optimizers' states.

        Returns:
            Numbers, and masks as those of `KeptZeros.state_dict`: a run that is resumed goes on as
            if it had not been interrupted. `torch.load` takes it with weights_only=True; where
            the model is sharded, torch.distributed.checkpoint saves it, and loads it for any number
            of processes. The schedule and the other arguments are the program's, and are not in it.

        Raises:
            RuntimeError: This Pruner was removed.
        """
        if self._removed:
            raise RuntimeError("this Pruner was removed; take its state before remove()")
        return {**self._numbers(), "zeros": self._zeros.state_dict()}

    def _packed_state(self) -> dict[str, Any]:
        """The same with whole masks at one bit a weight, for checkpoints that one rank writes."""
        return {**self._numbers(), "zeros": self._zeros._packed_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a saved Pruner stopped; load the model's state too, in any order.

        Args:
            state: What `state_dict` gave, of a Pruner of the same layers, which may be sharded in
                another way or not at all. Where they are sharded here, all ranks make the call.

        Raises:
            TypeError: A part of it has another type; nothing is changed.
            ValueError: It is of other layers, or no Pruner's, or its history contradicts itself;
                nothing is changed.
            RuntimeError: This Pruner was removed; or another rank could not take its state, so that
                no rank has.
        """
        if self._removed:
            raise RuntimeError("this Pruner was removed; make a new one to load a state into")
        step, history = _position(state)
        with Deferred():  # the weights that it zeroes, and the position, are one
            self._zeros.load_state_dict(state["zeros"])
            self._step, self._history = step, history

    def remove(self) -> None:
        """Stop pruning and stop keeping zeros; the model stays as it is."""
        self._zeros.remove()
        self._removed = True

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Pruner cannot be copied: hooks of optimizers stay behind; make one for the copies "
            "of the model and its optimizers, and load this one's state_dict() into it"
        )

    def __repr__(self) -> str:
        last = f"{self._last_sparsity():.4f}"
        return f"Pruner(step={self._step}, sparsity={last}, schedule={self._schedule!r})"

    def __enter__(self) -> Pruner:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    def _numbers(self) -> dict[str, Any]:
        """What a state has besides masks."""
        return {"step": self._step, "history": [list(pruning) for pruning in self._history]}

    def _last_sparsity(self) -> float:
        return self._history[-1][1] if self._history else 0.0

    def _agreed(self, step: int) -> float | None:
        """What all ranks prune to at a step; None where the schedule has not risen."""
        if (ranks := self._ranks()) is not None:
            return self._agreed_by_ranks(ranks, step)
        if not replicas.exist(self._group):
            return self._scheduled(step)
        return replicas.agreed(step, self._scheduled, self._masks, self._layers, self._group)

    def _agreed_by_ranks(self, ranks: Communicator, step: int) -> float | None:
        """What ranks that have parts of the model prune to; an error on one is one on all."""
        agreed: list[float | None] = [step]
        with ranks.together(agreed):
            agreed.append(self._scheduled(step))
            self._checked_layers()
        return agreed[1]

    def _ranks(self) -> Communicator | None:
        """The ranks that have parts of the model, where it is sharded."""
        if not self._is_sharded():
            return None
        from lampfast._engine.sharded import communicator_of

        return communicator_of(self._layers, self._holders)

    def _is_sharded(self) -> bool:
        is_given = self._holders is not None
        return is_given or shards.are_sharded(self._layers.values())

    def _scheduled(self, step: int) -> float | None:
        """What the schedule asks for at a step; None if it is no more than before."""
        sparsity = _arguments.fraction(f"schedule({step})", self._schedule(step))
        last = self._last_sparsity()
        # A difference as small as a formula's rounding is not going down.
        if sparsity < last and not isclose(sparsity, last):
            raise ValueError(
                f"schedule({step}) is {sparsity}, below the {last} that the model was pruned to "
                f"after step {self._history[-1][0]}; what is pruned stays pruned, so pass a "
                "schedule that never goes down"
            )
        return sparsity if sparsity > last else None

    def _prune(self, step: int, sparsity: float) -> None:
        found = self._checked_layers()
        now = self.report
        if _arguments.count("sparsity", sparsity, now.numel) < now.numel - now.kept:
            return  # it is sparser already
        empty = set(_all_zero(now))
        unpruned = [name for name in found.wholes if empty.issuperset(found.names(name))]
        history = [*self._history, (step, sparsity)]

        def record(report: Report) -> None:
            self._step, self._history = step, history

        with self._zeros._kept.leaving(unpruned):
            pruned(
                self._model,
                sparsity,
                record=record,
                group=self._holders,
                **self._how,
                **self._choice,
            )

    def _masks(self, sparsity: float) -> dict[str, torch.Tensor]:
        self._checked_layers()
        return masks(self._model, sparsity, **self._how, **self._choice)

    def _checked_layers(self) -> Layers:
        """The layers, if they are those that the optimizers train and whose zeros are kept."""
        found, _, unfit, _ = parameters.find(self._model, **self._choice)
        layers: dict[str, Any] = found.wholes
        for name in self._layers | layers:
            if name in self._layers and name in unfit:
                raise ValueError(f"layer {name!r} {unfit[name].problem()}")
            if name not in layers:
                change = "is gone"
            elif name not in self._layers:
                change = "is new"
            elif layers[name] is not self._layers[name]:
                change = "was replaced by another tensor"
            elif layers[name].shape != self._shapes[name]:
                shapes = tuple(self._shapes[name]), tuple(layers[name].shape)
                change = "changed its shape from {} to {}".format(*shapes)
            else:
                continue
            raise ValueError(
                f"layer {name!r} {change} since the Pruner was made; remove() it, and make a new "
                "one of the model and of an optimizer that trains it as it is now"
            )
        return found

    def _warn_of_empty_layers(self) -> None:
        if self._empty:
            warnings.warn(
                f"{zeros.listed(self._empty)} zero throughout, and {zeros.FROZEN}", stacklevel=3
            )


# lampfast sets the class's __module__; without this doctest would skip its methods' examples.
__test__ = {"Pruner": Pruner}


def how_checked(
    schedule: Schedule, method: Method, pattern: str | None, dim: int | None, block: Block | None
) -> dict[str, Any]:
    """How each pruning of a schedule chooses its weights, as arguments of `lampfast.prune`.

    Raises:
        TypeError: As for `lampfast.prune`.
        ValueError: As for `lampfast.prune`; or a pattern does not go with a schedule.
    """
    methods.check(method)
    _patterns.check_scheduled(pattern, dim, schedule)
    _blocks.parse(block, pattern)
    return {"method": method, "pattern": pattern, "dim": dim, "block": block}


def _all_zero(found: Report) -> list[str]:
    """The names of layers that have weights, all of them zero."""
    return [layer.name for layer in found.layers if layer.numel and not layer.kept]


def _position(state: Mapping[str, Any]) -> tuple[int, list[tuple[int, float]]]:
    """The step and the history of a saved Pruner."""
    if not isinstance(state, Mapping):
        raise TypeError(f"state is a {type(state).__name__}; pass what state_dict() returned")
    history = state["history"] if state.keys() == {"step", "history", "zeros"} else None
    if not isinstance(history, Sequence) or not all(
        isinstance(pruning, Sequence) and len(pruning) == 2 for pruning in history
    ):
        raise ValueError(
            "this is not the state of a Pruner, which has step, history (pairs of a step and a "
            "sparsity) and zeros"
        )
    position = _arguments.integer("the state's step", state["step"], least=0)
    prunings = [
        (
            _arguments.integer("a step in the state's history", step, least=1),
            _arguments.fraction("a sparsity in the state's history", sparsity),
        )
        for step, sparsity in history
    ]
    steps, sparsities = [step for step, _ in prunings], [sparsity for _, sparsity in prunings]
    if steps != sorted({*steps}) or any(step > position for step in steps):
        raise ValueError(
            f"the state's history has prunings after steps {steps}, and its step is {position}; "
            "they should rise up to it: pass what state_dict() returned"
        )
    if sparsities != sorted(sparsities):
        raise ValueError(
            f"the state's history has sparsities {sparsities}, which should never go down: pass "
            "what state_dict() returned"
        )
    return position, prunings
