"""The contract on memory, where a call could take once or several times the weights' bytes."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

import lampfast
from lampfast._cli import measure
from lampfast.methods import Method

_SIZE = 4_000_000


def _levels(count: int) -> torch.Tensor:
    """Ties of a few magnitudes far apart, as in quantised weights."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, count + 1, (_SIZE,), generator=generator).float()


def _tiny() -> torch.Tensor:
    """Magnitudes whose squares underflow."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(_SIZE, dtype=torch.float64, generator=generator) * 2.0**-850


def _call(weight: Callable[[], torch.Tensor], method: Method) -> measure.Call:
    torch.set_num_threads(2)
    weights = {name: weight() for name in ("a", "b")}
    lampfast.prune(measure.warm_up(), 0.5, method=method)
    return partial(lampfast.prune, weights, 0.6, method=method)


@pytest.mark.parametrize(
    ("weight", "method"),
    [
        (partial(_levels, 3), "global"),
        (partial(_levels, 5), "lamp"),
        (partial(_levels, 5), "uniform"),
        (_tiny, "global"),
    ],
    ids=["3-global", "5-lamp", "5-uniform", "tiny-global"],
)
def test_no_layer_is_sorted(weight: Callable[[], torch.Tensor], method: Method) -> None:
    _check(partial(_call, weight, method), 2 * weight().nbytes)


def _apply(dtype: torch.dtype) -> measure.Call:
    torch.set_num_threads(2)
    weights = {"a": torch.ones(4 * _SIZE, dtype=dtype), "b": torch.ones(2000, 2000, dtype=dtype)}
    kept = torch.rand(5 * _SIZE) < 0.1
    masks = {"a": kept[: 4 * _SIZE], "b": kept[4 * _SIZE :].view(2000, 2000).t()}
    lampfast.apply([torch.ones(99)], {"0": torch.ones(99, dtype=torch.bool)})
    return partial(lampfast.apply, weights, masks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
def test_masks_are_applied_where_they_are(dtype: torch.dtype) -> None:
    _check(partial(_apply, dtype), 5 * _SIZE * dtype.itemsize)


def _check(prepare: Callable[[], measure.Call], nbytes: int) -> None:
    peak = measure.peak_bytes(prepare)
    if peak is None:
        pytest.skip("this system does not tell the peak of a process's memory")
    # The contract's 5 % and 1 MiB, and what the system's own bookkeeping may add to them.
    assert peak < 0.1 * nbytes
