"""lampfast beside the textbook LAMP, torch's own global pruning, and floors, on ResNet-50.

One run checks that the results agree, times everything, measures the memory and sums it up.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import contenders
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from shapes import resnet50
from weights import Weights, gaussian

import lampfast
from lampfast import textbook
from lampfast._cli import measure

SPARSITY = 0.9
SLOW, FAST = 3, 30  # rounds
MIB = 2**20


@dataclass
class Summary:
    """What pytest prints at the end: every figure beside lampfast's own."""

    agreement: str = ""
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)  # by verb and name
    memory: dict[tuple[str, str], float] = field(default_factory=dict)

    def note_time(self, verb: str, name: str, benchmark: BenchmarkFixture) -> None:
        """Keeps the median; its ratio to lampfast's, timed first, goes into extra_info."""
        if benchmark.stats is None:  # --benchmark-disable
            return
        self.seconds[verb, name] = benchmark.stats.stats.median
        benchmark.extra_info["times lampfast"] = self.times_lampfast(verb, name)

    def times_lampfast(self, verb: str, name: str) -> float:
        """How many times as long as lampfast's own it took; NaN if that was not timed."""
        return self.seconds[verb, name] / self.seconds.get((verb, f"lampfast.{verb}"), math.nan)

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Prints the comparison after pytest-benchmark's own tables."""
        write = terminalreporter.write_line
        terminalreporter.section(f"ResNet-50 to {SPARSITY:.0%}, {torch.get_num_threads()} threads")
        write(self.agreement)
        write(f"{'':32}{'median':>12}{'times lampfast':>16}{'extra memory':>20}")
        for row in dict.fromkeys([*self.seconds, *self.memory]):
            time = memory = ""
            if row in self.seconds:
                time = f"{self.seconds[row] * 1e3:,.1f} ms{self.times_lampfast(*row):16,.2f}"
            if row in self.memory:
                memory = f"{self.memory[row]:.1%} of weights"
            write(f"{row[1]:32}{time:>28}{memory:>20}")


@pytest.fixture(scope="module")
def summary(pytestconfig: pytest.Config) -> Summary:
    summary = Summary()
    pytestconfig.pluginmanager.register(summary)
    return summary


@pytest.fixture(scope="module")
def weights() -> Weights:
    return gaussian(resnet50())


@pytest.fixture(scope="module")
def thresholds(weights: Weights) -> dict[str, float]:
    report = lampfast.prune(contenders.clone(weights), SPARSITY)
    return {layer.name: layer.threshold or float("inf") for layer in report.layers}


# Agreement, before anything is timed.


def test_results_agree(weights: Weights, summary: Summary) -> None:
    total = sum(weight.numel() for weight in weights.values())
    masks = lampfast.masks(weights, SPARSITY)
    assert _pruned(masks) == round(SPARSITY * total)

    pruned = contenders.clone(weights)
    lampfast.prune(pruned, SPARSITY)
    assert all(torch.equal(pruned[name], weights[name] * masks[name]) for name in weights)

    theirs = textbook.masks(weights, SPARSITY)
    differing = sum(int((masks[name] != theirs[name]).sum()) for name in weights)
    assert differing <= 1e-5 * total  # float32 rounding near the cut; more would be another answer

    scores, their_scores = lampfast.scores(weights), textbook.scores(weights)
    for name, score in scores.items():
        torch.testing.assert_close(their_scores[name], score, rtol=0.05, atol=0)

    summary.agreement = (
        f"lampfast prunes {_pruned(masks):,} of {total:,} weights, exactly k. "
        f"The textbook prunes {_pruned(theirs):,}; {differing:,} places differ."
    )


# Times.


def torch_masks(weights: Weights, thresholds: dict[str, float]) -> Weights:
    """Writes the masks when every layer's threshold is known, with one scratch for the layers."""
    scratch = torch.empty(max(weight.numel() for weight in weights.values()))
    return {
        name: torch.abs(weight, out=scratch[: weight.numel()].view_as(weight)) >= thresholds[name]
        for name, weight in weights.items()
    }


MASKS: dict[str, tuple[int, Callable[[Weights, dict[str, float]], object]]] = {
    "lampfast.masks": (FAST, lambda weights, _: lampfast.masks(weights, SPARSITY)),
    "textbook LAMP": (SLOW, lambda weights, _: textbook.masks(weights, SPARSITY)),
    "floor: torch, thresholds known": (FAST, torch_masks),
}


@pytest.mark.benchmark(group="masks")
@pytest.mark.parametrize("name", MASKS)
def test_masks(
    name: str,
    weights: Weights,
    thresholds: dict[str, float],
    summary: Summary,
    benchmark: BenchmarkFixture,
) -> None:
    rounds, call = MASKS[name]
    benchmark.pedantic(call, (weights, thresholds), rounds=rounds, warmup_rounds=1)
    summary.note_time("masks", name, benchmark)


PRUNE: dict[str, tuple[int, Callable[[Weights], Callable[[], object]]]] = {
    "lampfast.prune": (FAST, lambda weights: partial(lampfast.prune, weights, SPARSITY)),
    "textbook LAMP": (SLOW, lambda weights: partial(textbook.prune, weights, SPARSITY)),
    "torch global_unstructured (L1)": (
        SLOW,
        lambda weights: contenders.global_magnitude(weights, SPARSITY),
    ),
    "floor: copy of the weights": (
        FAST,
        lambda weights: partial(contenders.copy, weights, contenders.clone(weights)),
    ),
}


@pytest.mark.benchmark(group="prune")
@pytest.mark.parametrize("name", PRUNE)
def test_prune(name: str, weights: Weights, summary: Summary, benchmark: BenchmarkFixture) -> None:
    rounds, prepare = PRUNE[name]
    targets = contenders.clone(weights)

    def setup() -> tuple[tuple[Callable[[], object]], dict[str, object]]:
        contenders.restore(weights, targets)
        return (prepare(targets),), {}

    benchmark.pedantic(lambda call: call(), setup=setup, rounds=rounds, warmup_rounds=1)
    summary.note_time("prune", name, benchmark)


SCORES = {"lampfast.scores": lampfast.scores, "textbook LAMP": textbook.scores}


@pytest.mark.benchmark(group="scores")
@pytest.mark.parametrize("name", SCORES)
def test_scores(name: str, weights: Weights, summary: Summary, benchmark: BenchmarkFixture) -> None:
    benchmark.pedantic(SCORES[name], (weights,), rounds=SLOW, warmup_rounds=1)
    summary.note_time("scores", name, benchmark)


# Memory beyond the output, each in a fresh process.


def prepare_in_fresh_process(verb: str, name: str) -> Callable[[], object]:
    """Sets up one call in the process that measures it, its code already loaded."""
    weights = gaussian(resnet50())
    if verb == "prune":
        _, prepare = PRUNE[name]
        prepare(measure.warm_up())()
        return prepare(weights)
    _, call = MASKS[name]
    call(measure.warm_up(), {})
    return partial(call, weights, {})


@pytest.mark.parametrize(
    ("verb", "name"),
    [
        ("masks", "lampfast.masks"),
        ("masks", "textbook LAMP"),
        ("prune", "lampfast.prune"),
        ("prune", "textbook LAMP"),
        ("prune", "torch global_unstructured (L1)"),
    ],
)
def test_extra_memory(verb: str, name: str, weights: Weights, summary: Summary) -> None:
    peak = measure.peak_bytes(partial(prepare_in_fresh_process, verb, name))
    if peak is None:
        pytest.skip("only Linux tells the peak of a process's memory")
    output = sum(weight.numel() for weight in weights.values()) if verb == "masks" else 0
    size = sum(weight.nbytes for weight in weights.values())
    summary.memory[verb, name] = (peak - output) / size
    if name.startswith("lampfast"):
        assert peak - output <= 0.05 * size + MIB  # the contract


def _pruned(masks: Weights) -> int:
    return sum(int((~mask).sum()) for mask in masks.values())
