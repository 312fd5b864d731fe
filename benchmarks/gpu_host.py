"""What the host does in a call on layers that are on a GPU, measured without one.

Runs on a build with LAMPFAST_CUDA=EMULATED. The emulator runs each call once and keeps what it
receives. Then the call is played again, without kernels and copies: what that takes is the time of
the engine's host side, on one thread, and of Python around it. On a GPU a part of it overlaps with
the kernels. The engine's time is without what playing takes, that of its stages with it.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from unittest import mock

import torch

import lampfast
from lampfast import _core

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from emulation import emulated, played_again, take_costs
from shapes import resnet50

_STAGES = ("estimate", "partition", "narrow", "select", "commit")
_MILLISECONDS = ("engine", "Python", *_STAGES)
_COUNTS = ("misses", "waits", "launches", "to GPU KB", "back KB")
_ROW = "{:<36}" + "{:>10}" * (len(_MILLISECONDS) + len(_COUNTS))

_Sizes: TypeAlias = list[int]


class _Call(NamedTuple):
    milliseconds: tuple[float, ...]  # as _MILLISECONDS
    counts: tuple[float, ...]  # as _COUNTS


def main() -> None:
    """Print a line for every model, verb and sparsity."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21, help="calls, of which medians count (21)")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.9, 0.99])
    parser.add_argument("--verbs", nargs="+", default=["masks", "prune"])
    parser.add_argument(
        "--layers", type=int, nargs=2, metavar=("COUNT", "SIZE"), help="a model of these alone"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(_ROW.format("ms, on one thread", *_MILLISECONDS, *_COUNTS))
    for model, sizes in _models(arguments.layers).items():
        torch.manual_seed(0)
        weights = {str(i): torch.randn(n) * (1 + i % 7) for i, n in enumerate(sizes)}
        for sparsity, verb in product(arguments.sparsities, arguments.verbs):
            calls = _played(verb, weights, sparsity, arguments.rounds)
            times = map(statistics.median, zip(*(call.milliseconds for call in calls), strict=True))
            print(
                _ROW.format(
                    f"{verb}, {model}, {sparsity}",
                    *(f"{time:.2f}" for time in times),
                    *(f"{count:.0f}" for count in calls[-1].counts),
                ),
                flush=True,
            )


def _models(layers: tuple[int, int] | None) -> dict[str, _Sizes]:
    if layers is not None:
        count, size = layers
        return {f"{count:,} of {size:,}": [size] * count}
    return {
        "300 of 20,000": [20_000] * 300,
        "1,000 of 1,000": [1_000] * 1_000,
        "ResNet-50": [prod(shape) for shape in resnet50().values()],
    }


def _played(
    verb: str, weights: dict[str, torch.Tensor], sparsity: float, rounds: int
) -> list[_Call]:
    own = {name: weight.clone() for name, weight in weights.items()}
    with emulated(), played_again() as play:
        _call(verb, own, sparsity)
        calls = []
        for _ in range(rounds):
            play()
            calls.append(_call(verb, own, sparsity))
    return calls


def _call(verb: str, weights: dict[str, torch.Tensor], sparsity: float) -> _Call:
    profile = _core.CallProfile()
    with _timed(verb, profile) as engine:
        take_costs()
        start = time.perf_counter()
        getattr(lampfast, verb)(weights, sparsity)
        whole = time.perf_counter() - start
        costs = take_costs()
    return _Call(
        tuple(
            1e3 * seconds
            for seconds in (
                sum(engine) - costs.nanoseconds / 1e9,
                whole - sum(engine),
                *(getattr(profile, stage) for stage in _STAGES),
            )
        ),
        (
            profile.misses,
            costs.waits,
            costs.launches,
            costs.bytes_to_device / 1e3,
            costs.bytes_to_host / 1e3,
        ),
    )


@contextmanager
def _timed(verb: str, profile: _core.CallProfile) -> Iterator[list[float]]:
    """The seconds that the engine's function takes, call by call, and its stages in the profile."""
    seconds: list[float] = []
    function = getattr(_core, verb)

    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments[:4], profile, *arguments[5:])
        finally:
            seconds.append(time.perf_counter() - start)

    with mock.patch.object(_core, verb, timed):
        yield seconds


if __name__ == "__main__":
    main()
