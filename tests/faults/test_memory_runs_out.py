"""Memory or threads that run out: an error and no weight changed, or a call that is finished."""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import another_python
import numpy as np
import pytest

from lampfast import _core

FOLDER = Path(__file__).parent

pytestmark = [
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's allocator"),
    pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="a sanitizer has the allocator"),
]


@pytest.fixture(scope="module")
def failing_calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library whose allocations and threads fail."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no compiler: {compiler[0]}")
    library = tmp_path_factory.mktemp("library") / "failing_calls.so"
    options = ["-O1", "-std=c++17", "-shared", "-fPIC"]
    source = FOLDER / "failing_calls.cpp"
    subprocess.run([*compiler, *options, source, "-o", library, "-ldl"], check=True)
    return library


def _driven(name: str, argument: float, **environment: str) -> Any:
    """What a driver says."""
    done = another_python.run(str(FOLDER / name), str(argument), **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    print(done.stderr)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("driver", "seconds"),
    [("allocation_driver.py", 20.0), ("training_driver.py", 10.0)],
)
def test_every_allocation_fails_in_turn(driver: str, seconds: float, failing_calls: Path) -> None:
    found = _driven(
        driver,
        seconds,
        LD_PRELOAD=str(failing_calls),
        PYTHONMALLOC="malloc",
        OPENBLAS_NUM_THREADS="1",
    )
    assert found["wrong"] == []
    assert found["points"] > 50  # usually thousands: it ends after so many seconds
    assert found["errors"] > found["points"] // 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_helpers_survive_that_there_is_no_memory() -> None:
    ends = _driven("address_space_driver.py", 64)
    assert ends.keys() <= {"pruned", "MemoryError, nothing written"}
    assert ends["pruned"]
    assert ends["MemoryError, nothing written"]


def test_nothing_is_written_if_python_raises_before() -> None:
    """By then all is decided, so that what Python raises is the last that may keep the weights."""
    layer = np.arange(1.0, 11.0, dtype=np.float32)
    pointer = (layer.__array_interface__["data"][0], _core.Dtype.float32, (10,), (1,), -1)
    spec = _core.SelectionSpec(_core.Ranking.lamp, [4])
    given: list[list[_core.LayerThreshold]] = []

    def refuse(thresholds: list[_core.LayerThreshold]) -> None:
        given.append(thresholds)
        raise KeyError("not now")

    with pytest.raises(KeyError, match="not now"):
        _core.prune([pointer], [pointer], spec, (1, ()), before_writing=refuse)
    assert given[0][0].pruned == 4
    assert np.count_nonzero(layer) == 10
    assert _core.prune([pointer], [pointer], spec, (1, ())) == given[0]
    assert np.count_nonzero(layer) == 6
