"""Packed masks against plain integers: any bits, any strides, sizes around words and registers."""

from unittest import mock

import cpu_settings
import numpy as np
import pytest
import strategies
import torch
from compare import BITS, assert_same_memory, memory, pruned_copy
from cpu_settings import CpuSettings
from hypothesis import given
from hypothesis import strategies as st
from strategies import Model

from lampfast import _core
from lampfast._engine import copies, gpus, packed_masks, views

# Whole words, registers of every instruction set, chunks of test sizes, and one more or less.
_SIZES = [n + d for n in (8, 16, 32, 64, 128, 256, 512) for d in (-1, 0, 1)]
# Powers of two times an odd number, so that there are shapes to choose from.
_sizes = st.one_of(
    st.integers(0, 70), st.sampled_from(_SIZES), st.sampled_from([96, 192, 210, 360])
)


def bits(layer: torch.Tensor) -> torch.Tensor:
    return layer.view(BITS[layer.itemsize])


def is_kept(layer: torch.Tensor) -> torch.Tensor:
    """What is not zero, by its bits: all but the sign."""
    return (bits(layer) & ((1 << (8 * layer.itemsize - 1)) - 1)) != 0


@st.composite
def _shapes(draw: st.DrawFn) -> tuple[int, ...]:
    size, shape = draw(_sizes), []
    for _ in range(draw(st.integers(0, 3)) if size else 0):
        shape.append(draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0])))
        size //= shape[-1]
    return tuple(draw(st.permutations([*shape, size])))


@st.composite
def any_bits(draw: st.DrawFn) -> Model:
    """Layers of random bits, NaN of all payloads, subnormals and zeros of both signs among them."""
    model = {}
    for i in range(draw(st.integers(1, 4))):
        dtype, shape = draw(st.sampled_from(strategies.DTYPES)), draw(_shapes())
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
        bytes_ = torch.randint(
            256, (*shape, dtype.itemsize), generator=generator, dtype=torch.uint8
        )
        integers = bytes_.view(BITS[dtype.itemsize]).reshape(shape)
        share = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
        gone = torch.rand(shape, generator=generator) < share
        sign = torch.where(torch.rand(shape, generator=generator) < 0.5, -1, 0).to(integers.dtype)
        zeros = sign << (8 * dtype.itemsize - 1)
        layer = torch.where(gone, zeros, integers).view(dtype)
        model[str(i)] = draw(strategies.laid_out(layer))
    return model


def twin(layer: torch.Tensor, changed: torch.Tensor) -> torch.Tensor:
    """The same memory and strides with the values of another layer, and what they keep."""
    copy = pruned_copy(layer, torch.ones(layer.shape, dtype=torch.bool))
    bits(copy).copy_(bits(changed))
    return copy


@given(any_bits(), strategies.cpus)
def test_zeros_come_back_and_nothing_else_changes(model: Model, cpu: CpuSettings) -> None:
    cpu.use()
    layers = views.layers(model, write=True)
    before = {name: memory(layer).clone() for name, layer in model.items()}
    masks = packed_masks.record(layers)
    for name, layer in model.items():
        assert torch.equal(memory(layer), before[name])  # recording only reads
    kept = {name: is_kept(layer) for name, layer in model.items()}
    moved = {name: twin(layer, ~bits(layer)) for name, layer in model.items()}
    expected = {name: pruned_copy(layer, kept[name]) for name, layer in moved.items()}
    packed_masks.apply(views.layers(moved, write=True), masks)
    assert_same_memory(moved, expected)
    packed_masks.apply(views.layers(moved, write=True), masks)
    assert_same_memory(moved, expected)


@given(any_bits())
def test_bytes_are_in_row_major_order_for_every_memory_format(model: Model) -> None:
    layers = views.layers(model, write=True)
    for layer, mask in zip(layers, packed_masks.record(layers), strict=True):
        flat = is_kept(model[layer.name]).reshape(-1).tolist()
        packed = packed_masks.packed(packed_masks.to_bools(layer, mask).numpy())
        assert packed.dtype == np.uint8
        expected = [0] * ((len(flat) + 7) // 8)
        for i, kept in enumerate(flat):
            expected[i // 8] |= kept << (i % 8)
        assert packed.tolist() == expected
        kept = packed_masks.unpacked(packed, layer.weight.shape)
        again = packed_masks.from_bools(layer, kept)
        assert torch.equal(packed_masks.to_bools(layer, again), kept)


@given(any_bits(), st.data())
def test_a_mask_goes_with_its_layer(model: Model, data: st.DataObject) -> None:
    before = views.layers(model, write=True)
    masks = packed_masks.record(before)
    for view, mask in zip(before, masks, strict=True):
        layer = model[view.name]
        dtype = data.draw(st.sampled_from(strategies.DTYPES), "dtype")
        moved = data.draw(strategies.laid_out(torch.ones(layer.shape).to(dtype)), "layout")
        (now,) = views.layers({view.name: moved}, write=True)
        packed_masks.apply([now], [packed_masks.carried(view, mask, now)])
        assert torch.equal(moved.to(torch.float32), is_kept(layer).to(torch.float32))


@given(any_bits(), st.data())
def test_a_device_without_an_engine(model: Model, data: st.DataObject) -> None:
    away = {name for name in model if data.draw(st.booleans(), name)}
    storages = {model[name].untyped_storage()._cdata for name in away}

    def is_here(tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata not in storages

    kept = {name: is_kept(layer) for name, layer in model.items()}
    with (
        mock.patch.object(copies, "is_local", is_here),
        mock.patch.object(gpus, "are_in_host", return_value=False),
    ):
        layers = views.layers(model, write=True)
        masks = packed_masks.record(layers)
        bools = [
            packed_masks.to_bools(layer, mask).clone()
            for layer, mask in zip(layers, masks, strict=True)
        ]
        for layer in model.values():
            bits(layer).copy_(~bits(layer))
        expected = {name: pruned_copy(layer, kept[name]) for name, layer in model.items()}
        packed_masks.apply(layers, masks)
        masks = [
            packed_masks.from_bools(layer, mask) for layer, mask in zip(layers, bools, strict=True)
        ]
        packed_masks.apply(layers, masks)
    assert_same_memory(model, expected)


_INTEGERS = {
    "float8_e5m2": np.uint8,
    "float8_e4m3fn": np.uint8,
    "float16": np.uint16,
    "bfloat16": np.uint16,
    "float32": np.uint32,
    "float64": np.uint64,
}
_GUARD = 70  # elements behind a layer that must stay


@pytest.mark.parametrize("dtype", _INTEGERS)
@pytest.mark.parametrize("instruction_set", cpu_settings.INSTRUCTION_SETS)
def test_every_size_up_to_some_words(instruction_set: str, dtype: str) -> None:
    CpuSettings(1, instruction_set).use()
    random = np.random.default_rng(0)
    for size in range(330):
        for share in (0.0, 0.9, 1.0) if size % 16 == 0 else (0.5,):
            _check_one_layer(dtype, size, share, random)


def _check_one_layer(dtype: str, size: int, share: float, random: np.random.Generator) -> None:
    """Random bits, a share of which are zeros of either sign, against numpy."""
    integer = np.dtype(_INTEGERS[dtype])
    top = np.array(1 << (8 * integer.itemsize - 1), integer)
    bits = random.integers(0, 2**8, (size + _GUARD) * integer.itemsize, np.uint8).view(integer)
    gone = random.random(size) < share
    bits[:size][gone] &= top
    kept = (bits[:size] & ~top) != 0
    words = np.full((size + 63) // 64 + 1, 0x5A5A5A5A5A5A5A5A, np.uint64)
    layer = bits.ctypes.data, getattr(_core.Dtype, dtype), (size,), (1,), gpus.HOST
    _core.pack([layer], [words.ctypes.data], (1, ()))
    assert words[-1] == 0x5A5A5A5A5A5A5A5A
    packed = np.unpackbits(words.view(np.uint8), bitorder="little")
    assert (packed[:size] == kept).all(), size
    before = bits[:] = ~bits
    expected = before.copy()
    expected[:size][~kept] = 0
    words[size // 64] |= np.array((2**64 - 1) << (size % 64) & (2**64 - 1), np.uint64)
    _core.apply_packed_masks([layer], [words.ctypes.data], (1, ()))
    assert (bits == expected).all(), size


def test_many_chunks_and_threads() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(3)
    weights = torch.randn(700_001)
    kept = torch.rand(len(weights)) < 0.1
    layers = {
        "dense": weights * kept,
        "offset": (weights * kept)[3:],
        "columns": (weights * kept)[:700_000].view(700, 1000)[:, ::2],
        "transposed": (weights * kept)[:700_000].view(700, 1000).t(),
    }
    checked = views.layers({name: layer.clone() for name, layer in layers.items()}, write=True)
    sliced = views.layers({"columns": layers["columns"]}, write=True)
    expected = [is_kept(layers[view.name]) for view in [*checked, *sliced]]
    masks = packed_masks.record([*checked, *sliced])
    for view in [*checked, *sliced]:
        assert isinstance(view.weight, torch.Tensor)
        view.weight.fill_(1.5)
    packed_masks.apply([*checked, *sliced], masks)
    for view, mask in zip([*checked, *sliced], expected, strict=True):
        assert isinstance(view.weight, torch.Tensor)
        assert torch.equal(view.weight, mask * 1.5)
