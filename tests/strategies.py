"""Hypothesis strategies for models: the hard inputs of exact pruning.

The layers of a model draw their weights from one small pool and are often made from each other
(copied, permuted, scaled, one weight nudged), so that scores tie, tie across layers, or differ
only in exact arithmetic. A weight is drawn as a Python float and rounded to the layer's dtype.
"""

import math
from typing import Any

import cpu_settings
import hard_weights
import numpy as np
import numpy.typing as npt
import torch
from hypothesis import settings
from hypothesis import strategies as st

DTYPES = hard_weights.DTYPES

Array = npt.NDArray[Any]
Model = dict[str, torch.Tensor]
ArrayModel = dict[str, Array]

cpus = st.sampled_from(cpu_settings.EVERY)

# For tests of what lies around the engine, whose own exactness test_exact.py tries as often.
assert settings.default is not None
fewer = settings(max_examples=settings.default.max_examples // 4)

_LIMIT = np.finfo(np.float64).max.item()
_EXTREMES = (
    *(0.0, -0.0, 1.0, -1.0, 2.0**30, -(2.0**60), 2.0**-30, 1e-300, -1e300, 1e-160, 1e150),
    *(5e-324, -1e-310),  # subnormal in float64, zero in the others
    *(2.0**-149, -1e-40, 3.4e38, 1e-20),  # at the ends of float32 and bfloat16
    *(2.0**-24, -1e-6, 65504.0, 57344.0),  # float16 and float8_e5m2
    *(2.0**-9, -(2.0**-8), 448.0),  # float8_e4m3fn
)


@st.composite
def _pools(draw: st.DrawFn) -> list[float]:
    """A few weights that a model is made of."""
    return draw(
        st.one_of(
            st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=4),
            st.lists(st.sampled_from(_EXTREMES), min_size=1, max_size=5),
            st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=8),
            st.lists(st.floats(0.5, 2.0, width=32), min_size=1, max_size=8),
            _neighbours(),
            _beneath_a_giant(),
        )
    )


@st.composite
def _neighbours(draw: st.DrawFn) -> list[float]:
    """Weights that differ in their last bits, as float64, float32, float16 or bfloat16 see them."""
    base = draw(st.floats(1.0, 2.0, width=16))
    step = draw(st.sampled_from([2.0**-52, 2.0**-23, 2.0**-10, 2.0**-7]))
    return [base + step * j for j in draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))]


@st.composite
def _beneath_a_giant(draw: st.DrawFn) -> list[float]:
    """Small weights next to one so large that floating-point sums no longer see them."""
    giant = 2.0 ** draw(st.sampled_from([10, 30, 60, 120]))
    return [giant, *draw(st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=3))]


@st.composite
def _layer_values(draw: st.DrawFn, pool: list[float], earlier: list[list[float]]) -> list[float]:
    """The weights of one layer: from the pool, or an earlier layer with a twist."""
    made = draw(
        st.sampled_from(["pool", "pool", "equal", "zero", "copy", "permute", "scale", "nudge"])
    )
    if made == "zero":
        return [0.0] * draw(st.integers(0, 6))
    if made == "equal":  # scores 1/n, 1/(n - 1), … tie with those of any other such layer
        return [draw(st.sampled_from(pool))] * draw(st.integers(1, 12))
    if made == "pool" or not earlier:
        return draw(st.lists(st.sampled_from(pool), max_size=24))
    values = list(draw(st.sampled_from(earlier)))
    if made == "permute":
        return draw(st.permutations(values))
    if made == "scale":  # exact by a power of two, and by 3 for small integers; else near ties
        factor = draw(st.sampled_from([-1.0, 2.0, 2.0**-20, 2.0**40, 3.0, 1 / 3, 1e-10, 1.1]))
        return [max(-_LIMIT, min(_LIMIT, value * factor)) for value in values]
    if made == "nudge" and values:
        place = draw(st.integers(0, len(values) - 1))
        ulps = draw(st.sampled_from([2.0**-52, -(2.0**-52), 2.0**-23, 2.0**-7, -1.0]))
        values[place] = max(-_LIMIT, min(_LIMIT, values[place] * (1 + ulps)))
    return values


@st.composite
def _shapes(draw: st.DrawFn, size: int) -> tuple[int, ...]:
    """A shape of that many elements, with 0 to 4 dimensions."""
    if size == 0:
        return draw(st.sampled_from([(0,), (3, 0), (0, 2, 1)]))
    if size == 1 and draw(st.booleans()):
        return ()
    shape = []
    for _ in range(draw(st.integers(0, 3))):
        divisors = [d for d in range(1, size + 1) if size % d == 0]
        shape.append(draw(st.sampled_from(divisors)))
        size //= shape[-1]
    return tuple(draw(st.permutations([*shape, size])))


def as_dtype(values: list[float], dtype: torch.dtype) -> torch.Tensor:
    """Round to the dtype; what is too large for it becomes its largest number."""
    limit = torch.finfo(dtype).max
    return torch.tensor(values, dtype=torch.float64).clamp(-limit, limit).to(dtype)


@st.composite
def laid_out(draw: st.DrawFn, tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor in some memory format; the gaps of a slice hold other numbers."""
    ways = ["contiguous", "contiguous", "reversed", "offset", "strided"]
    if tensor.dim() == 4:
        ways.append("channels_last")
    way = draw(st.sampled_from(ways))
    if way == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if way == "reversed":  # a transposed view
        dims = tuple(reversed(range(tensor.dim())))
        return tensor.permute(dims).contiguous().permute(dims)
    if way in ("offset", "strided") and tensor.dim() > 0:
        step = 3 if way == "strided" else 1
        shape = (*tensor.shape[:-1], tensor.shape[-1] * step + 2)
        base = torch.full(shape, 0.75, dtype=torch.float32).to(tensor.dtype)
        view = base[..., 1 : 1 + tensor.shape[-1] * step : step]
        view.copy_(tensor)
        return view
    return tensor.contiguous()


@st.composite
def _value_lists(draw: st.DrawFn) -> list[list[float]]:
    """The weights of every layer of a model."""
    pool = draw(_pools())
    layers: list[list[float]] = []
    for _ in range(draw(st.integers(0, 6))):
        layers.append(draw(_layer_values(pool, layers)))
    return layers


@st.composite
def models(draw: st.DrawFn) -> Model:
    """A mapping of tensors: one dtype or mixed, any memory format, empty and 0-d layers too."""
    dtype = draw(st.sampled_from([*DTYPES, None]))
    model = {}
    for position, values in enumerate(draw(_value_lists())):
        chosen = dtype or draw(st.sampled_from(DTYPES))
        tensor = as_dtype(values, chosen).reshape(draw(_shapes(len(values))))
        model[f"layer{position}"] = draw(laid_out(tensor))
    return model


@st.composite
def array_models(draw: st.DrawFn) -> ArrayModel:
    """A mapping of numpy arrays, with negative and other strides."""
    model = {}
    for position, values in enumerate(draw(_value_lists())):
        dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.float16]))
        array = as_dtype(values, dtype).reshape(draw(_shapes(len(values)))).numpy().copy()
        way = draw(st.sampled_from(["contiguous", "fortran", "backwards", "strided"]))
        if array.ndim == 0:
            pass
        elif way == "fortran":
            array = np.array(array, order="F")
        elif way == "backwards":
            array = np.flip(np.flip(array).copy())  # every stride negative
        elif way == "strided":
            base = np.full((*array.shape[:-1], array.shape[-1] * 2 + 1), 0.75, dtype=array.dtype)
            base[..., 1::2] = array
            array = base[..., 1::2]
        model[f"layer{position}"] = array
    return model


@st.composite
def importances(draw: st.DrawFn, model: Model) -> Model:
    """A saliency for every layer of a model, in a dtype and memory format of its own."""
    pool = draw(_pools())
    result = {}
    for name, layer in model.items():
        size = layer.numel()
        values = draw(st.lists(st.sampled_from(pool), min_size=size, max_size=size))
        tensor = as_dtype(values, draw(st.sampled_from(DTYPES))).reshape(layer.shape)
        result[name] = draw(laid_out(tensor))
    return result


def amounts(numel: int) -> st.SearchStrategy[float]:
    """How much to prune: a count, at the ends or between them, or a share."""
    return st.one_of(
        st.sampled_from([0, min(1, numel), max(numel - 1, 0), numel]),
        st.integers(0, numel),
        st.floats(0, 1),
    )


def numel(model: Model | ArrayModel) -> int:
    """The number of weights of a model."""
    return sum(math.prod(layer.shape) for layer in model.values())
