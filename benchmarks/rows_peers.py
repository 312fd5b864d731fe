"""lampfast beside what people use today: the textbook, and torch's own global pruning.

They take seconds where lampfast takes milliseconds, so few rounds do; in each, lampfast is called
several times.
"""

import statistics
from collections.abc import Callable
from functools import partial

import contenders
from contenders import Prepare
from outcome import Goal, Line, Outcome
from run import USUAL, Run
from shapes import MODELS
from weights import Weights, gaussian

import lampfast
from lampfast import textbook
from lampfast._cli import measure

_CALLS = 5  # of lampfast in a round


def textbook_masks(run: Run) -> Outcome:
    """The textbook's masks over `lampfast.masks`."""

    def contest(weights: Weights) -> tuple[Prepare, Prepare]:
        contenders.check_masks(weights, USUAL)
        theirs = partial(textbook.masks, weights, USUAL)
        return contenders.masks(weights, USUAL), lambda: theirs

    return _beside(run, "masks, textbook", contest, _more(150, 250))


def global_magnitude(run: Run) -> Outcome:
    """Torch's global_unstructured, L1, over `lampfast.prune`."""

    def contest(weights: Weights) -> tuple[Prepare, Prepare]:
        targets = contenders.clone(weights)
        contenders.check_prune(weights, targets, USUAL)
        theirs = partial(contenders.global_magnitude, weights, USUAL)
        return contenders.prune(weights, targets, USUAL), theirs

    return _beside(run, "prune, torch global L1", contest, _more(120, 200))


def textbook_scores(run: Run) -> Outcome:
    """The textbook's scores over `lampfast.scores`."""

    def contest(weights: Weights) -> tuple[Prepare, Prepare]:
        ours, theirs = partial(lampfast.scores, weights), partial(textbook.scores, weights)
        return lambda: ours, lambda: theirs

    return _beside(run, "scores, textbook", contest, _more(25, 50))


def _beside(
    run: Run, what: str, contest: Callable[[Weights], tuple[Prepare, Prepare]], goal: Goal
) -> Outcome:
    """Times both sides of a contest on every model."""
    lines = []
    for model in MODELS:
        run.progress(f"{what}: {model}")
        ours, theirs = contest(gaussian(run.model(model)))
        *medians, slow = measure.median_seconds([*[ours] * _CALLS, theirs], run.slow_rounds)
        fast = statistics.median(medians)
        lines.append(Line(f"{what}: {model}", slow / fast, goal, fast, f"{slow * 1e3:,.0f} ms"))
    return Outcome(lines)


def _more(must: float, aim: float) -> Goal:
    """More is better: how many times as long the peer takes."""
    return Goal(must, aim, "{:.0f} ×", at_least=True)
