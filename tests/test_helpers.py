"""The tests' own helpers, for tensors that are not in host memory: no GPU is needed to try them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import compare
import pytest
import strategies
import torch
from hypothesis import given
from refusal import refused
from strategies import Model


class Away(torch.Tensor):
    """Gives its values to the host only as a CUDA tensor does: after it was asked for a copy."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.numpy:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        result = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        return result.as_subclass(torch.Tensor) if func is torch.Tensor.cpu else result


@given(strategies.models())
def test_memory_stays_on_its_device(model: Model) -> None:
    for layer in model.values():
        there = compare.moved(layer, "meta")
        assert (there.device.type, there.dtype) == ("meta", layer.dtype)
        assert (there.shape, there.stride()) == (layer.shape, layer.stride())
        assert there.storage_offset() == layer.storage_offset()
        assert compare.memory(there).device == there.device
        assert compare.memory(there).shape == compare.memory(layer).shape
        mask = torch.ones_like(there, dtype=torch.bool)
        twin = compare.pruned_copy(there, mask)
        assert (twin.device, twin.stride()) == (there.device, there.stride())


@given(strategies.models())
def test_moved_memory_is_the_same(model: Model) -> None:
    twins = {name: compare.moved(layer, "cpu") for name, layer in model.items()}
    compare.assert_same_memory(twins, model)


def test_refused_reads_tensors_on_other_devices() -> None:
    weight = torch.arange(6.0).as_subclass(Away)
    with pytest.raises(TypeError, match="to numpy"):
        weight.numpy()
    with refused(ValueError, "no", keeps=[weight]):
        raise ValueError("no")
    with pytest.raises(AssertionError):
        _refuse_too_late(weight)


def _refuse_too_late(weight: torch.Tensor) -> None:
    with refused(ValueError, keeps=[weight]):
        _change_and_raise(weight)


def _change_and_raise(weight: torch.Tensor) -> None:
    weight[3] = 7.0
    raise ValueError


def test_ids_name_dtypes_and_shapes(request: pytest.FixtureRequest) -> None:
    name = request.config.hook.pytest_make_parametrize_id
    asked = [torch.float8_e4m3fn, (2, 3), ("a", 1.5), object(), [torch.ones(2)]]
    ids = [name(config=request.config, val=value, argname="x") for value in asked]
    assert ids == ["float8_e4m3fn", "(2, 3)", "('a', 1.5)", None, None]
