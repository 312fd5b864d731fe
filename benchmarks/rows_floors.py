"""masks and prune beside their floors, for every model, kind of weights and sparsity."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import contenders
from outcome import Cell, Goal, Grid, Line, Outcome
from run import SPARSITIES, Run
from shapes import MODELS
from weights import KINDS, Weights

_COLUMNS = {
    "model": "",
    "weights": "",
    "sparsity": "",
    "ours ms": ",.2f",
    "ns/weight": ".3f",
    "floor ms": ",.2f",
    "ratio": ".2f",
}


@dataclass(frozen=True)
class _Case:
    """One line of the details; times in seconds."""

    model: str
    kind: str
    sparsity: float
    numel: int
    ours: float
    floor: float
    stricter_floor: float | None = None

    @property
    def name(self) -> str:
        return f"{self.model}, {self.kind}, {self.sparsity}"

    @property
    def ratio(self) -> float:
        return self.ours / self.floor

    @property
    def strict_ratio(self) -> float | None:
        return self.ours / self.stricter_floor if self.stricter_floor else None

    def cells(self) -> tuple[Cell, ...]:
        ns = self.ours / self.numel * 1e9
        times = self.ours * 1e3, ns, self.floor * 1e3, self.ratio
        return self.model, self.kind, str(self.sparsity), *times, self.strict_ratio


def masks(run: Run) -> Outcome:
    """`lampfast.masks` over writing the masks when every threshold is known."""
    cases = []
    for model, kind, weights in _all_weights(run):
        for s in SPARSITIES:
            run.progress(f"masks: {model}, {kind}, {s}")
            contenders.check_masks(weights, s)
            times = run.medians(contenders.masks(weights, s), *contenders.masks_floors(weights, s))
            cases.append(_Case(model, kind, s, contenders.numel(weights), *times))
    return Outcome(
        _summary("masks", cases, Goal(3, 1.7)),
        [
            Grid(
                "masks over its floor: new masks from known thresholds (strict: into old masks)",
                _COLUMNS | {"strict": ".2f"},
                [case.cells() for case in cases],
            )
        ],
    )


def prune(run: Run) -> Outcome:
    """`lampfast.prune` over a copy of the weights."""
    cases = []
    for model, kind, weights in _all_weights(run):
        targets = contenders.clone(weights)
        for s in SPARSITIES:
            run.progress(f"prune: {model}, {kind}, {s}")
            contenders.check_prune(weights, targets, s)
            times = run.medians(
                contenders.prune(weights, targets, s), contenders.copy_floor(weights, targets)
            )
            cases.append(_Case(model, kind, s, contenders.numel(weights), *times))
    return Outcome(
        _summary("prune", cases, Goal(3.2, 2)),
        [
            Grid(
                "prune, in place, over its floor: a copy of the weights",
                _COLUMNS,
                [case.cells()[: len(_COLUMNS)] for case in cases],
            )
        ],
    )


def _all_weights(run: Run) -> Iterator[tuple[str, str, Weights]]:
    for model in MODELS:
        for kind, generate in KINDS.items():
            run.progress(f"making weights: {model}, {kind}")
            yield model, kind, generate(run.model(model))


def _summary(verb: str, cases: Sequence[_Case], goal: Goal) -> list[Line]:
    """The worst case, and the median of the ratios."""
    worst = max(cases, key=lambda case: case.ratio)
    median = statistics.median(case.ratio for case in cases)
    beside = f"floor {worst.floor * 1e3:,.2f} ms"
    strict = [case.strict_ratio for case in cases if case.strict_ratio]
    return [
        Line(f"{verb}, worst: {worst.name}", worst.ratio, goal, worst.ours, beside),
        Line(
            f"{verb}, median of {len(cases)} cases",
            median,
            goal,
            beside=f"strict floor: {statistics.median(strict):.2f} ×" if strict else "",
        ),
    ]
