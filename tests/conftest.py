"""Settings of the whole suite: hypothesis profiles, and CPU settings put back after each test.

With LAMPFAST_EMULATED set, tensors are pruned by the kernels for GPUs (emulation.py).
"""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from numbers import Number

import cpu_settings
import pytest
import torch
from cpu_settings import CpuSettings
from emulation import emulated
from hypothesis import HealthCheck, settings

# Examples vary in cost with the machine's load: no deadlines. CI repeats the same examples.
settings.register_profile(
    "default", deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, print_blob=True)
settings.register_profile("brief", settings.get_profile("ci"), max_examples=60)  # repetitions
settings.register_profile("thorough", settings.get_profile("default"), max_examples=5000)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "default")
)


# Processes that run beside each other share the cores; tests of threads ask for theirs.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Ids by which -k can choose: float32, or (2, 3), where pytest would number the values.

    Only for what is written the same in every process.
    """
    if isinstance(val, torch.dtype):
        return str(val).removeprefix("torch.")
    items = val if isinstance(val, (tuple, list)) else [val]
    is_plain = all(isinstance(item, (str, Number, CpuSettings)) for item in items)
    return str(val) if is_plain else None


@pytest.fixture(autouse=True)
def _cpu_settings() -> Iterator[None]:
    """A test may change the threads and the instruction set; the next starts as it would alone."""
    before = cpu_settings.current()
    yield
    before.use()


@pytest.fixture(autouse=True, scope="session")
def _place() -> Iterator[None]:
    with emulated() if "LAMPFAST_EMULATED" in os.environ else nullcontext():
        yield


@pytest.fixture
def forgotten_ranks() -> Iterator[None]:
    """What a process knows of ranks must not outlive a rule that is broken (broken_rules.py)."""
    from lampfast._engine import sharded

    sharded._known.clear()
    yield
    sharded._known.clear()
