"""How calls are timed, what `--quick` shrinks, and what a file of results says of the machine."""

from collections.abc import Callable
from typing import Any

import machine
import pytest
import shapes
import torch
from contenders import Prepare
from pytest_benchmark.fixture import BenchmarkFixture
from shapes import Shapes
from weights import Weights, gaussian

import lampfast

ROUNDS = 21
# What --benchmark-compare reads of a file.
_KEPT = {"min", "max", "mean", "stddev", "median", "iqr", "ops", "outliers", "rounds", "iterations"}

Clock = Callable[..., Any]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        help="few weights, each call once: only shows that everything works",
    )
    parser.addoption(
        "--rounds",
        type=int,
        default=ROUNDS,
        help=f"how often each call is timed, {ROUNDS}; what takes seconds a tenth as often",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("quick"):
        config.option.benchmark_disable = True


@pytest.fixture
def clock(benchmark: BenchmarkFixture, pytestconfig: pytest.Config) -> Clock:
    """Times a call in a group, each time set up anew and untimed; gives the result of the last."""

    def time(group: str, prepare: Prepare, *, slow: bool = False) -> Any:
        rounds: int = pytestconfig.getoption("rounds")
        benchmark.group = group
        return benchmark.pedantic(
            lambda call: call(),
            setup=lambda: ((prepare(),), {}),
            rounds=max(2, rounds // 10) if slow else rounds,
            warmup_rounds=0 if slow else 1,
        )

    return time


@pytest.fixture(scope="session")
def quick(pytestconfig: pytest.Config) -> bool:
    """Whether few weights will do."""
    return bool(pytestconfig.getoption("quick"))


@pytest.fixture(scope="session")
def sized(quick: bool) -> Callable[[Shapes], Shapes]:
    """Gives shapes as they are, with `--quick` a small part of them."""
    return shapes.shrunk if quick else lambda whole: whole


@pytest.fixture(scope="module")
def resnet50(sized: Callable[[Shapes], Shapes]) -> Weights:
    """Gaussian weights of ResNet-50."""
    return gaussian(sized(shapes.resnet50()))


# What is kept in files of `--benchmark-json` says nothing of whose machine it was.


def pytest_benchmark_generate_machine_info() -> dict[str, object]:
    return {
        "processor": machine.processor(),
        "instruction set": lampfast.config()["instruction_set"],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "lampfast": lampfast.__version__,
    }


def pytest_benchmark_generate_commit_info() -> dict[str, object]:
    return {}


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    for each in output_json["benchmarks"]:
        for key in ("params", "param", "options"):
            each.pop(key)
        each["stats"] = {name: value for name, value in each["stats"].items() if name in _KEPT}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what the tests of memory found, which have no times."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"extra {name}, {value}")
