"""What the host does in a call on layers that are on a GPU, measured without one.

Runs on a build with LAMPFAST_CUDA=EMULATED, and takes off the time that the emulator takes for
kernels and copies: what is left is the time of the engine's host side, on one thread, and of Python
around it. On a GPU a part of it overlaps with the kernels.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

import lampfast
from lampfast import _core

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from emulation import Costs, emulated, take_costs

_MODELS = {"300 layers of 20,000": (300, 20_000), "1,000 layers of 1,000": (1_000, 1_000)}
_SPARSITIES = (0.5, 0.9, 0.99)
_ROW = "{:<38} {:>9} {:>9} {:>6} {:>9} {:>9} {:>8}"


class _Times(NamedTuple):
    """Of one call, in milliseconds."""

    engine: float
    python: float
    costs: Costs


def main() -> None:
    """Print a line for every model, verb and sparsity."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="calls, of which medians count (7)")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    heads = ("engine ms", "Python ms", "waits", "launches", "to GPU KB", "back KB")
    print(_ROW.format("", *heads))
    for model, (layers, size) in _MODELS.items():
        torch.manual_seed(0)
        weights = {str(i): torch.randn(size) * (1 + i % 7) for i in range(layers)}
        for s in _SPARSITIES:
            for verb in ("masks", "prune"):
                calls = [_measure(verb, weights, s) for _ in range(rounds)]
                costs = calls[-1].costs
                print(
                    _ROW.format(
                        f"{verb}, {model}, {s}",
                        f"{statistics.median(call.engine for call in calls):.2f}",
                        f"{statistics.median(call.python for call in calls):.2f}",
                        costs.waits,
                        costs.launches,
                        f"{costs.bytes_to_device / 1e3:.1f}",
                        f"{costs.bytes_to_host / 1e3:.1f}",
                    ),
                    flush=True,
                )


def _measure(verb: str, weights: dict[str, torch.Tensor], s: float) -> _Times:
    own = {name: weight.clone() for name, weight in weights.items()}
    with emulated(), _timed(verb) as engine:
        take_costs()
        start = time.perf_counter()
        getattr(lampfast, verb)(own, s)
        whole = time.perf_counter() - start
        costs = take_costs()
    return _Times(sum(engine) * 1e3 - costs.nanoseconds / 1e6, (whole - sum(engine)) * 1e3, costs)


@contextmanager
def _timed(verb: str) -> Iterator[list[float]]:
    """The seconds that the engine's function takes, call by call."""
    seconds: list[float] = []
    function = getattr(_core, verb)

    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            seconds.append(time.perf_counter() - start)

    with mock.patch.object(_core, verb, timed):
        yield seconds


if __name__ == "__main__":
    main()
