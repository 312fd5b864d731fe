"""How sparse a model should be at each step: plain callables, step -> sparsity.

A step is what the caller counts. `lampfast.Pruner` counts optimizer steps done so far; a loop of
its own may call a schedule with rounds or epochs just as well, all numbers of steps are then in
that unit. Any other callable from an int to a fraction that never goes down is a schedule too.
"""

# Calling one of these classes makes a schedule, as a function would: so they are named like one.
# ruff: noqa: N801

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from lampfast import _arguments

__all__ = ["Schedule", "constant", "cubic", "geometric", "linear"]

Schedule: TypeAlias = Callable[[int], float]
"""From the number of steps that are done to a sparsity that never goes down."""


@dataclass(frozen=True)
class geometric:
    """Rounds that each prune the same fraction of what remains: the LAMP paper's protocol.

    Example:
        >>> from lampfast import schedules
        >>> schedule = schedules.geometric(1000, rounds=20)
        >>> [round(schedule(step), 4) for step in (0, 999, 1000, 2000, 20_000, 50_000)]
        [0.0, 0.0, 0.2, 0.36, 0.9885, 0.9885]
        >>> by_round = schedules.geometric()
        >>> [round(by_round(done), 3) for done in range(4)]
        [0.0, 0.2, 0.36, 0.488]

    Args:
        interval: Steps from one round to the next.
        fraction: What each round prunes of the weights that remain, 0.0 to 1.0.
        rounds: How many rounds there are; None for no end.
        start: The step of the first round; None for `interval`, so that the first round too comes
            after training that long.

    Returns:
        A callable that gives 1 - (1 - fraction)^r, r being the rounds done by that step.

    Raises:
        TypeError: A number has another type.
        ValueError: A number is out of range.

    Source:
        Lee, Park, Mo, Ahn, Shin: Layer-adaptive sparsity for the Magnitude-based Pruning, ICLR
        2021, arXiv 2010.07611, section 4: 20 rounds that each prune 20 % of what remains.
    """

    interval: int = 1
    fraction: float = field(default=0.2, kw_only=True)
    rounds: int | None = field(default=None, kw_only=True)
    start: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _arguments.integer("interval", self.interval, least=1)
        _arguments.fraction("fraction", self.fraction)
        if self.rounds is not None:
            _arguments.integer("rounds", self.rounds, least=1)
        if self.start is not None:
            _arguments.integer("start", self.start, least=0)

    def __call__(self, step: int) -> float:
        """The sparsity at a step."""
        _arguments.integer("step", step, least=0)
        start = self.interval if self.start is None else self.start
        done = max(0, (step - start) // self.interval + 1)
        if self.rounds is not None:
            done = min(done, self.rounds)
        return 1.0 - (1.0 - float(self.fraction)) ** done


@dataclass(frozen=True)
class _Ramp:
    """From an initial sparsity to a final one in a number of steps."""

    final: float
    steps: int
    initial: float = field(default=0.0, kw_only=True)
    start: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        _arguments.fraction("final", self.final)
        _arguments.integer("steps", self.steps, least=1)
        _arguments.fraction("initial", self.initial)
        _arguments.integer("start", self.start, least=0)
        if self.initial > self.final:
            raise ValueError(
                f"initial is {self.initial} and final is {self.final}; what is pruned stays "
                "pruned, so final cannot be lower"
            )

    def __call__(self, step: int) -> float:
        """The sparsity at a step."""
        _arguments.integer("step", step, least=0)
        if step < self.start:
            return 0.0
        done = min(1.0, (step - self.start) / self.steps)
        sparsity = self.initial + (self.final - self.initial) * self._easing(done)
        # The formula may round to other than final at the end, or above it just before.
        return float(self.final if done == 1 else min(self.final, sparsity))

    def _easing(self, done: float) -> float:
        """How much of the way is behind, after this share of the steps."""
        raise NotImplementedError


@dataclass(frozen=True)
class cubic(_Ramp):
    """Much at first, when most weights can be spared, then less and less: gradual pruning.

    Example:
        >>> from lampfast import schedules
        >>> schedule = schedules.cubic(0.8, 1000)
        >>> [round(schedule(step), 4) for step in (0, 100, 500, 1000, 2000)]
        [0.0, 0.2168, 0.7, 0.8, 0.8]

    Args:
        final: The sparsity at the end, 0.0 to 1.0; stays from then on.
        steps: Steps from the start to the end.
        initial: The sparsity at the start.
        start: The step that it starts at; before, nothing is pruned.

    Returns:
        A callable that gives final + (initial - final) · (1 - (step - start) / steps)³.

    Raises:
        TypeError: A number has another type.
        ValueError: A number is out of range, or `final` is below `initial`.

    Source:
        Zhu, Gupta: To prune, or not to prune: exploring the efficacy of pruning for model
        compression, 2017, arXiv 1710.01878, equation 1.
    """

    def _easing(self, done: float) -> float:
        return 1 - (1 - done) ** 3


@dataclass(frozen=True)
class linear(_Ramp):
    """As much at every step.

    Example:
        >>> from lampfast import schedules
        >>> schedule = schedules.linear(0.8, 1000, initial=0.4, start=500)
        >>> [round(schedule(step), 4) for step in (0, 499, 500, 1000, 1500, 2000)]
        [0.0, 0.0, 0.4, 0.6, 0.8, 0.8]

    Args:
        final: The sparsity at the end, 0.0 to 1.0; stays from then on.
        steps: Steps from the start to the end.
        initial: The sparsity at the start.
        start: The step that it starts at; before, nothing is pruned.

    Returns:
        A callable that gives final + (initial - final) · (1 - (step - start) / steps).

    Raises:
        TypeError: A number has another type.
        ValueError: A number is out of range, or `final` is below `initial`.
    """

    def _easing(self, done: float) -> float:
        return done


@dataclass(frozen=True)
class constant:
    """One sparsity from one step on: one-shot pruning.

    Example:
        >>> from lampfast import schedules
        >>> schedule = schedules.constant(0.9, start=1000)
        >>> schedule(999), schedule(1000), schedule(1001)
        (0.0, 0.9, 0.9)

    Args:
        sparsity: The sparsity, 0.0 to 1.0.
        start: The step that it starts at; before, nothing is pruned.

    Returns:
        A callable that gives `sparsity` from `start` on, and 0.0 before.

    Raises:
        TypeError: A number has another type.
        ValueError: A number is out of range.
    """

    sparsity: float
    start: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        _arguments.fraction("sparsity", self.sparsity)
        _arguments.integer("start", self.start, least=0)

    def __call__(self, step: int) -> float:
        """The sparsity at a step."""
        _arguments.integer("step", step, least=0)
        return float(self.sparsity) if step >= self.start else 0.0
