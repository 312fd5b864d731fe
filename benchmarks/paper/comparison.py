"""What the results say: means, spreads and paired differences with their confidence."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import NamedTuple

from records import LayerRow, Row
from scipy.stats import t as student

CHANCE = 0.05  # that an interval leaves out zero where there is no difference


class Spread(NamedTuple):
    """Values of several seeds.

    Attributes:
        deviation: The standard deviation from seed to seed; None of one seed.
    """

    seeds: int
    mean: float
    deviation: float | None


class Difference(NamedTuple):
    """A paired difference: of every seed the one value minus the other.

    Attributes:
        half: Half the width of the 95 % confidence interval of the mean; None of one seed.
        chance: That the mean is as far from zero, or further, where there is no difference: the
            p-value of Student's paired test; None of one seed.
    """

    seeds: int
    mean: float
    half: float | None
    chance: float | None

    @property
    def verdict(self) -> str:
        """Whether the first leads or loses: whether the interval leaves out zero."""
        if self.half is None:
            return "one seed"
        if abs(self.mean) <= self.half:
            return "ties"
        return "leads" if self.mean > 0 else "loses"


class Table:
    """The accuracies of one model in one protocol, by method, round and seed.

    Only seeds that all its methods have: the means of different seeds do not compare.

    Args:
        rows: Of any models and protocols.
    """

    def __init__(self, rows: Sequence[Row], model: str, protocol: str) -> None:
        chosen = [row for row in rows if (row.model, row.protocol) == (model, protocol)]
        seeds: dict[str, set[int]] = defaultdict(set)
        for row in chosen:
            seeds[row.method].add(row.seed)
        self._accuracy = {(row.method, row.round, row.seed): row.accuracy for row in chosen}
        self._seeds = sorted(set.intersection(*seeds.values())) if seeds else []
        dense = [row for row in rows if (row.model, row.round) == (model, 0)]
        self._dense = [row.accuracy for row in dense if row.seed in self._seeds]
        self.sparsities = dict(sorted((row.round, row.sparsity) for row in chosen))
        self.methods = set(seeds)

    @property
    def dense(self) -> float | None:
        """The mean accuracy of the networks before pruning; None where there are none."""
        return fmean(self._dense) if self._dense else None

    def spread(self, method: str, number: int) -> Spread | None:
        """The accuracies of a method after a round; None where there are none."""
        values = [
            self._accuracy[method, number, seed]
            for seed in self._seeds
            if (method, number, seed) in self._accuracy
        ]
        return spread(values) if values else None

    def difference(self, first: str, second: str, numbers: Sequence[int]) -> Difference | None:
        """First minus second, means over these rounds; None where no seed has all, or no round."""
        means = [
            (self._mean(first, numbers, seed), self._mean(second, numbers, seed))
            for seed in self._seeds
        ]
        values = [one - other for one, other in means if one is not None and other is not None]
        return difference(values) if values else None

    def common(self, *methods: str) -> list[int]:
        """The rounds that all these methods could do."""
        return [
            number
            for number in self.sparsities
            if all(self.spread(method, number) for method in methods)
        ]

    def nearest(self, sparsity: float) -> int:
        """The round whose sparsity comes closest."""
        return min(self.sparsities, key=lambda number: abs(self.sparsities[number] - sparsity))

    def _mean(self, method: str, numbers: Sequence[int], seed: int) -> float | None:
        """Of one seed, over these rounds; None if one of them is missing, or there are none."""
        values = [self._accuracy.get((method, number, seed)) for number in numbers]
        found = [value for value in values if value is not None]
        return fmean(found) if found and len(found) == len(numbers) else None


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation.

    Example:
        >>> spread([1.0, 2.0, 3.0])
        Spread(seeds=3, mean=2.0, deviation=1.0)
    """
    return Spread(len(values), fmean(values), stdev(values) if len(values) > 1 else None)


def difference(values: Sequence[float]) -> Difference:
    """The mean of paired differences with its confidence.

    Example:
        >>> difference([1.0, 2.0, 3.0])
        Difference(seeds=3, mean=2.0, half=2.4841..., chance=0.0741...)
    """
    seeds, mean, deviation = spread(values)
    if deviation is None:
        return Difference(seeds, mean, None, None)
    half = float(student.ppf(1 - CHANCE / 2, seeds - 1)) * deviation / sqrt(seeds)
    if deviation == 0:
        return Difference(seeds, mean, half, float(mean == 0))
    errors = abs(mean) * sqrt(seeds) / deviation
    return Difference(seeds, mean, half, 2 * float(student.sf(errors, seeds - 1)))


def corrected(chances: Sequence[float]) -> list[float]:
    """What the p-values of several tests are worth together, by Holm's method.

    Example:
        >>> corrected([0.01, 0.04, 0.5])
        [0.03, 0.08, 0.5]

    Source:
        Holm, A simple sequentially rejective multiple test procedure, Scand. J. Stat. 6 (1979).
    """
    result, highest = [0.0] * len(chances), 0.0
    for rank, i in enumerate(sorted(range(len(chances)), key=chances.__getitem__)):
        highest = max(highest, min(1.0, (len(chances) - rank) * chances[i]))
        result[i] = highest
    return result


def layerwise(
    rows: Iterable[LayerRow], model: str, protocol: str, number: int
) -> dict[str, dict[str, Spread]]:
    """By method and layer the sparsity after a round."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if (row.model, row.protocol, row.round) == (model, protocol, number):
            values[row.method][row.layer].append(1 - row.kept / row.weights)
    return {
        method: {layer: spread(some) for layer, some in layers.items()}
        for method, layers in values.items()
    }


class Share(NamedTuple):
    """The time that LAMP's pruning takes of a loop of pruning and training.

    Attributes:
        prunings: How many were measured.
        pruning: Mean seconds of one.
        training: Mean seconds of the training that follows it.
    """

    prunings: int
    pruning: float
    training: float

    @property
    def fraction(self) -> float:
        """Of the loop's time; testing is not counted."""
        return self.pruning / (self.pruning + self.training)


def share(rows: Iterable[Row], seconds: Callable[[Row], float | None]) -> Share | None:
    """The share of the time of pruning, which `seconds` tells; rows without it do not count."""
    times = [(taken, row.seconds_training) for row in rows if (taken := seconds(row)) is not None]
    if not times:
        return None
    pruning, training = zip(*times, strict=True)
    return Share(len(times), fmean(pruning), fmean(training))
