"""Quantised layers: float8 codes with scales beside them, ranked by the exact products.

The oracle is lampfast.reference on the products in float64, which are exact there.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast
from unittest import mock

import numpy as np
import pytest
import strategies
import torch
from compare import assert_same_masks, assert_same_memory, pruned_copy
from cpu_settings import CpuSettings
from hypothesis import given
from hypothesis import strategies as st
from refusal import refused
from test_devices import far
from torch import nn

import lampfast
from lampfast import reference
from lampfast._engine import copies, gpus
from lampfast.methods import Method

METHODS: tuple[Method, ...] = ("lamp", "global", "uniform", "erk")
CODES = (torch.float8_e4m3fn, torch.float8_e5m2)


class Quantised(nn.Linear):
    """A linear layer of codes, with their scales beside them."""

    def __init__(
        self, weight: torch.Tensor, scale: torch.Tensor, block: object, name: str, *, buffer: bool
    ) -> None:
        nn.Module.__init__(self)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.block_size = block
        if buffer:
            self.register_buffer(name, scale)
        else:
            self.register_parameter(name, nn.Parameter(scale, requires_grad=False))


def expanded(
    scale: torch.Tensor, shape: Sequence[int], block: Sequence[int] | None
) -> torch.Tensor:
    """One scale for each weight, as float64."""
    scale = scale.double()
    if scale.numel() == 1:
        return scale.reshape(()).expand(*shape)
    scale = scale.reshape(*scale.shape, *[1] * (len(shape) - scale.ndim))
    for dim, size in enumerate(shape):
        repeats = size if scale.shape[dim] == 1 else (block or [1] * len(shape))[dim]
        scale = scale.repeat_interleave(repeats, dim).narrow(dim, 0, size)
    return scale


@st.composite
def codes(draw: st.DrawFn, shape: tuple[int, ...]) -> torch.Tensor:
    """Finite codes, of a few magnitudes or of all."""
    dtype = draw(st.sampled_from(CODES))
    finite = 0x7E if dtype == torch.float8_e4m3fn else 0x7B
    magnitudes = st.integers(0, finite)
    if draw(st.booleans()):
        magnitudes = st.sampled_from(draw(st.lists(magnitudes, min_size=1, max_size=3)))
    size = math.prod(shape)
    signs = draw(st.lists(st.sampled_from([0, 0x80]), min_size=size, max_size=size))
    bits = draw(st.lists(magnitudes, min_size=size, max_size=size))
    values = [a | b for a, b in zip(bits, signs, strict=True)]
    return torch.tensor(values, dtype=torch.uint8).reshape(shape).view(dtype)


@st.composite
def scales(draw: st.DrawFn, shape: tuple[int, ...]) -> torch.Tensor:
    """Scales by which products tie across blocks, are near ties, or lie far apart."""
    dtype = draw(
        st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float8_e8m0fnu])
    )
    powers = [1.0, 0.5, 2.0, 0.25, 2.0**-20, 2.0**20]
    others = [0.75, 1 / 3, 3.0, 1.1, -1.0, 0.0, 2.0**-149, 3.4e38, 1 + 2.0**-23]
    pool = powers if dtype == torch.float8_e8m0fnu else powers + others
    few = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=4))
    size = math.prod(shape)
    values = draw(st.lists(st.sampled_from(few), min_size=size, max_size=size))
    limit = torch.finfo(dtype).max
    return torch.tensor(values).clamp(-limit, limit).to(dtype).reshape(shape)


@st.composite
def quantised(draw: st.DrawFn) -> tuple[Quantised, torch.Tensor]:
    """A layer, and its exact products."""
    shape = draw(st.sampled_from([(4, 6), (5, 7), (1, 9), (8, 1), (3, 4, 5), (2, 3, 2, 2), (6, 6)]))
    block = [draw(st.integers(1, 5)) for _ in shape]
    grid = tuple(-(-size // extent) for size, extent in zip(shape, block, strict=True))
    ones = (1,) * (len(shape) - 1)
    forms = [(), (1,), (shape[0], *ones), (shape[0],), grid, grid, grid]
    found = draw(st.sampled_from(forms))
    if len(shape) == 2 and found == (1, shape[0]):
        found = ()  # taken for one scale a row, see test_compressed_tensors
    scale = draw(scales(found))
    weight = draw(strategies.laid_out(draw(codes(shape))))
    name = draw(st.sampled_from(["weight_scale_inv", "weight_scale", "scale"]))
    layer = Quantised(weight, scale, tuple(block), name, buffer=draw(st.booleans()))
    of_block = block if found == grid else None
    return layer, weight.double() * expanded(scale, shape, of_block)


@st.composite
def models(draw: st.DrawFn) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A model of quantised and plain layers, and its products by name."""
    model, products = nn.ModuleDict(), {}
    for i in range(draw(st.integers(1, 4))):
        if draw(st.integers(0, 3)):
            layer, product = draw(quantised())
            model[f"layer{i}"] = layer
            products[f"layer{i}.weight"] = product
        else:
            plain = nn.Linear(3, 4, bias=False)
            values = draw(st.lists(st.integers(-3, 3).map(float), min_size=12, max_size=12))
            plain.weight.data = torch.tensor(values).reshape(4, 3)
            model[f"layer{i}"] = plain
            products[f"layer{i}.weight"] = plain.weight.detach()
    return model, products


def codes_of(model: nn.Module, names: Mapping[str, object]) -> dict[str, torch.Tensor]:
    """The weights as they are stored."""
    return {name: model.get_parameter(name).detach() for name in names}


@given(st.data(), models(), strategies.cpus, st.sampled_from(METHODS))
def test_products_are_ranked(
    data: st.DataObject,
    made: tuple[nn.Module, dict[str, torch.Tensor]],
    cpu: CpuSettings,
    method: Method,
) -> None:
    model, products = made
    sparsity = data.draw(strategies.amounts(strategies.numel(products)), "sparsity")
    cpu.use()
    masks = reference.masks(products, sparsity, method=method)
    assert_same_masks(lampfast.masks(model, sparsity, method=method), masks)

    expected = lampfast.report(products, sparsity, method=method).layers
    assert lampfast.report(model, sparsity, method=method).layers == expected

    weights = codes_of(model, products)
    pruned = {name: pruned_copy(layer, masks[name]) for name, layer in weights.items()}
    assert lampfast.prune(model, sparsity, method=method).layers == expected
    assert_same_memory(weights, pruned)


@given(models(), strategies.cpus)
def test_scores_and_zeros_are_those_of_the_products(
    made: tuple[nn.Module, dict[str, torch.Tensor]], cpu: CpuSettings
) -> None:
    model, products = made
    cpu.use()
    scores = lampfast.scores(products)
    for name, found in lampfast.scores(model).items():
        assert found.dtype == scores[name].dtype
        assert torch.equal(found, scores[name]), name
    assert lampfast.report(model).layers == lampfast.report(products).layers


def blocked(rows: int, columns: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix as DeepSeek stores it: codes, and the scales of blocks of 128 by 128."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(-(-rows // 128), -(-columns // 128), generator=generator) + 0.5
    weight = torch.randn(rows, columns, generator=generator) / expanded(
        scale, (rows, columns), (128, 128)
    )
    return (weight * 40).to(torch.float8_e4m3fn), scale


def checkpoint(shapes: Sequence[tuple[int, int]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A state_dict with the scales of blocks, and its products."""
    state: dict[str, Any] = {}
    products: dict[str, Any] = {}
    for i, shape in enumerate(shapes):
        weight, scale = blocked(*shape, seed=i)
        state |= {f"{i}.weight": weight, f"{i}.weight_scale_inv": scale}
        products[f"{i}.weight"] = weight.double() * expanded(scale, shape, (128, 128))
    return state, products


def test_layers_with_the_scales_of_blocks() -> None:
    state, products = checkpoint([(512, 512)] * 3)
    masks = lampfast.masks(products, 0.5)
    assert_same_masks(lampfast.masks(state, 0.5), masks)
    raw = lampfast.masks({name: state[name] for name in products}, 0.5)
    assert sum(int((raw[name] != mask).sum()) for name, mask in masks.items()) > 10_000


def test_one_scale_a_tensor_changes_no_lamp_mask_but_global_ones() -> None:
    state, _ = checkpoint([(64, 128)] * 3)
    for i in range(3):
        state[f"{i}.weight_scale_inv"] = torch.tensor(10.0**i)
    codes_alone = {name: weight for name, weight in state.items() if name.endswith("weight")}
    assert_same_masks(lampfast.masks(state, 0.5), lampfast.masks(codes_alone, 0.5))
    raw = lampfast.masks(codes_alone, 0.5, method="global")
    scaled = lampfast.masks(state, 0.5, method="global")
    assert [float(mask.float().mean()) for mask in scaled.values()] == pytest.approx(
        [0, 0.5, 1], abs=0.2
    )
    assert any(not torch.equal(scaled[name], raw[name]) for name in raw)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", ["whole", "transposed", "strided"])
def test_ragged_blocks_of_large_layers(method: Method, layout: str) -> None:
    state, products = checkpoint([(700, 900), (1000, 260), (129, 4000)])
    for name in products:
        if layout == "transposed":
            state[name] = state[name].t().contiguous().t()
        elif layout == "strided":
            base = torch.zeros(state[name].shape[0], 2 * state[name].shape[1], dtype=torch.uint8)
            view = base.view(state[name].dtype)[:, ::2]
            state[name] = view.copy_(state[name])
    masks = lampfast.masks(products, 0.6, method=method)
    assert_same_masks(lampfast.masks(state, 0.6, method=method), masks)
    lampfast.prune(state, 0.6, method=method)
    for name, mask in masks.items():
        assert torch.equal(state[name].float() != 0, mask & (products[name] != 0)), name


def stored(rows: int, columns: int) -> torch.Tensor:
    """Codes for the tests of names and shapes."""
    generator = torch.Generator().manual_seed(rows + columns)
    return torch.randn(rows, columns, generator=generator).to(torch.float8_e4m3fn)


class TinyExperts(nn.Module):
    """Experts as transformers' FP8Experts stores them."""

    def __init__(self, inner: int, block: tuple[int, int] | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block_size = block
        for name, rows, columns in (("gate_up_proj", 2 * inner, 6), ("down_proj", 6, inner)):
            weight = torch.randn(3, rows, columns).to(torch.float8_e4m3fn)
            grid = (3, 2 if name == "gate_up_proj" else 1, 1)
            if block is not None:
                grid = (3, -(-rows // block[0]), -(-columns // block[1]))
            scale = torch.rand(grid) + 0.25
            self.register_parameter(name, nn.Parameter(weight, requires_grad=False))
            self.register_parameter(f"{name}_scale_inv", nn.Parameter(scale, requires_grad=False))
        self.gate_up_proj_activation_scale = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize(
    ("inner", "block"), [(4, (2, 4)), (4, (3, 4)), (5, (2, 2)), (5, (10, 6)), (4, None)]
)
def test_stacked_experts(inner: int, block: tuple[int, int] | None) -> None:
    experts = TinyExperts(inner, block)
    parts = {}
    for name in ("gate_up_proj", "down_proj"):
        weight, scale = getattr(experts, name), getattr(experts, f"{name}_scale_inv")
        of_one = block or (weight.shape[1] // scale.shape[1], weight.shape[2])
        product = weight.double() * expanded(scale, weight.shape, (1, *of_one))
        for i, slice_ in enumerate(product):
            halves = slice_.chunk(2) if name == "gate_up_proj" else [slice_]
            for half, layer in zip(
                (".gate", ".up") if len(halves) > 1 else ("",), halves, strict=True
            ):
                parts[f"{name}[{i}]{half}"] = layer
    model = nn.ModuleDict({"experts": experts})
    expected = lampfast.report(parts, 0.5)
    got = lampfast.report(model, 0.5)
    assert [layer.name for layer in got.layers] == [f"experts.{name}" for name in parts]
    assert [layer[1:] for layer in got.layers] == [layer[1:] for layer in expected.layers]
    masks = lampfast.masks(parts, 0.5)
    joined = [masks[f"gate_up_proj[{i}].{half}"] for i in range(3) for half in ("gate", "up")]
    whole = lampfast.masks(model, 0.5)["experts.gate_up_proj"]
    assert torch.equal(whole.flatten(0, 1), torch.cat(joined))


def test_rows_as_layers() -> None:
    weight, scale = blocked(300, 200, seed=0)
    products = weight.double() * expanded(scale, (300, 200), (128, 128))
    state = {"a.weight": weight, "a.weight_scale_inv": scale}
    got = lampfast.masks(state, 0.5, stacked="a.weight", method="uniform")
    expected = lampfast.masks({"a": products}, 0.5, stacked="a", method="uniform")
    assert torch.equal(got["a.weight"], expected["a"])


def test_scales_are_no_layers_and_told() -> None:
    state, _ = checkpoint([(40, 30)])
    state |= {"0.input_scale": torch.ones(1), "norm.weight": torch.ones(40)}
    report = lampfast.report(state)
    assert [layer.name for layer in report.layers] == ["0.weight", "norm.weight"]
    assert {(left.name, left.reason) for left in report.left_out} == {
        ("0.weight_scale_inv", "scale"),
        ("0.input_scale", "scale"),
    }
    layer = Quantised(stored(8, 8), torch.ones(8, 1), None, "weight_scale", buffer=False)
    for chosen in (None, "*"):
        report = lampfast.report(layer, include=chosen)
        assert [found.name for found in report.layers] == ["weight"]
        assert [(left.name, left.reason) for left in report.left_out] == [("weight_scale", "scale")]
    with refused(ValueError, "'a.weight_scale'", keeps=[]):
        lampfast.report({"a.weight_scale": torch.ones(2, 2)})


@pytest.mark.parametrize("argument", ["include", "stacked"])
def test_a_pattern_that_means_scales_only_is_an_error(argument: str) -> None:
    model = {"a": torch.ones(4, 4).to(torch.float8_e4m3fn), "a_scale_inv": torch.ones(4, 1)}
    for patterns in ("*_scale_inv", ["a*", "a_scale_inv"]):
        with pytest.raises(ValueError, match="scales of weights, as 'a_scale_inv'"):
            lampfast.report(model, **cast(Any, {argument: patterns}))
    assert lampfast.report(model, **cast(Any, {argument: "a*"})).numel == 16


def test_codes_without_scales_are_values() -> None:
    weight = stored(20, 30)
    masks = lampfast.masks({"a.weight": weight, "b.bias": torch.ones(3)}, 0.5)
    assert_same_masks(masks, reference.masks({"a.weight": weight, "b.bias": torch.ones(3)}, 0.5))


def test_an_importance_wins() -> None:
    state, products = checkpoint([(40, 30)])
    state["0.weight_zero_scale"] = torch.ones(2)  # of which nobody knows what it does
    importance = {"0.weight": torch.rand(40, 30)}
    got = lampfast.masks(state, 0.5, importance=importance)
    assert_same_masks(got, lampfast.masks(products, 0.5, importance=importance))


def test_compressed_tensors() -> None:
    class CompressedTensorsFP8Linear(Quantised):
        """As transformers' class of this name, which stores the scales of rows as one row."""

    scale = torch.rand(1, 8) + 0.1
    weight = stored(8, 8)
    layer = CompressedTensorsFP8Linear(weight, scale, None, "weight_scale", buffer=False)
    products = {"weight": weight.double() * scale.double().t()}
    assert_same_masks(lampfast.masks(layer, 0.5), lampfast.masks(products, 0.5))
    oblong = {"a.weight": stored(8, 12), "a.weight_scale": scale}
    products = {"a.weight": oblong["a.weight"].double() * scale.double().t()}
    assert_same_masks(lampfast.masks(oblong, 0.5), lampfast.masks(products, 0.5))


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"weight_scale": torch.ones(1, 12)}, ["(12, 12)", "(1, 12)"]),  # of rows, or of columns?
        ({"weight_scale": torch.ones(5, 1)}, ["(5, 1)", "block_size"]),
        ({"weight_scale": torch.ones(2, 2, 1)}, ["(2, 2, 1)"]),
        ({"weight_scale": torch.ones(3)}, ["(3,)"]),
        ({"weight_scale_2": torch.ones(1)}, ["'a.weight_scale_2'", "importance="]),
        ({"scale_weight": torch.ones(1)}, ["'a.scale_weight'", "importance="]),
        ({"weight_scale": torch.ones(1), "weight_scale_inv": torch.ones(1)}, ["weight_scale_inv"]),
        ({"weight_scale": torch.tensor([[1.0], [math.nan]] * 6)}, ["nan", "(1, 0)"]),
        ({"weight_scale": torch.tensor(math.inf)}, ["inf", "()"]),
        ({"weight_scale": torch.tensor(1 / 3, dtype=torch.float64)}, ["float64"]),
    ],
)
def test_scales_that_are_not_known(extra: dict[str, torch.Tensor], words: list[str]) -> None:
    state = {"a.weight": stored(12, 12)} | {f"a.{name}": it for name, it in extra.items()}
    for call in (lampfast.prune, lampfast.masks):
        with refused(ValueError, "'a.weight'", *words, keeps=state.values()):
            call(state, 0.5)
    masks = {"a.weight": torch.zeros(12, 12, dtype=torch.bool)}
    assert lampfast.apply(state, masks, include="a.weight").kept == 0  # asks for no scales


@pytest.mark.parametrize("scale", [torch.ones(1, dtype=torch.uint8), torch.ones(1, device="meta")])
def test_scales_that_are_no_floats_in_memory(scale: torch.Tensor) -> None:
    state = {"a.weight": stored(4, 4), "a.weight_scale": scale}
    with refused(TypeError, "'a.weight_scale'", keeps=[state["a.weight"]]):
        lampfast.prune(state, 0.5)


def test_arrays() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    state, products = checkpoint([(200, 130)])
    arrays = {
        "0.weight": state["0.weight"].view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn),
        "0.weight_scale_inv": state["0.weight_scale_inv"].numpy(),
    }
    mask = lampfast.masks(arrays, 0.5)["0.weight"]
    assert isinstance(mask, np.ndarray)
    assert np.array_equal(mask, lampfast.masks(products, 0.5)["0.weight"].numpy())


def test_layers_on_devices_without_an_engine() -> None:
    state, products = checkpoint([(200, 130)])
    masks = lampfast.masks(products, 0.5)
    with far([state["0.weight"]]):
        assert_same_masks(lampfast.masks(state, 0.5), masks)
        lampfast.prune(state, 0.5)
    assert torch.equal(state["0.weight"].float() != 0, masks["0.weight"])


def test_layers_on_a_gpu_go_through_host_memory() -> None:
    state, products = checkpoint([(200, 130)])
    expected = lampfast.masks(products, 0.5)
    there = {state["0.weight"].untyped_storage()._cdata}

    def index(tensor: torch.Tensor) -> int:
        return 0 if tensor.untyped_storage()._cdata in there else gpus.HOST

    with (
        mock.patch.multiple(gpus, index=index, are_in_host=lambda tensors: False),
        mock.patch.object(copies, "_warned", set()),
    ):
        with pytest.warns(UserWarning, match="does not multiply"):
            masks = lampfast.masks(state, 0.5)
        assert_same_masks(masks, expected)
        there.add(masks["0.weight"].untyped_storage()._cdata)
        masks["0.weight"].fill_(True)
        lampfast.masks(state, 0.5, out=masks)
        assert_same_masks(masks, expected)
        lampfast.prune(state, 0.5)
    assert torch.equal(state["0.weight"].float() != 0, expected["0.weight"])


def test_zeros_stay_and_come_back() -> None:
    state, _ = checkpoint([(200, 130)])
    layer = Quantised(
        state["0.weight"], state["0.weight_scale_inv"], (128, 128), "weight_scale_inv", buffer=True
    )
    before = copy.deepcopy(layer.state_dict())
    lampfast.prune(layer, 0.5)
    kept = layer.weight.detach().float() != 0
    lampfast.rewind(layer, before)
    assert torch.equal(layer.weight.detach().float() != 0, kept)
    assert lampfast.apply(layer, {"weight": kept}).kept == int(kept.sum())
    zeros = lampfast.keep_zeros(layer, torch.optim.SGD([nn.Parameter(torch.ones(1))]))
    layer.weight.data.view(torch.uint8).fill_(1)
    zeros.restore()
    assert torch.equal(layer.weight.detach().float() != 0, kept)


def test_patterns_do_not_rank_products() -> None:
    state, _ = checkpoint([(8, 8)])
    with refused(ValueError, "'0.weight'", "importance=", keeps=state.values()):
        lampfast.prune(state, pattern="2:4")
    importance = {"0.weight": torch.rand(8, 8)}
    assert lampfast.prune(state, pattern="2:4", importance=importance).kept == 32


@pytest.mark.parametrize("name", ["scaled", "upscale.weight", "autoscaler"])
def test_names_that_only_have_scale_in_them_are_no_scales(name: str) -> None:
    codes = torch.randn(8, 8).to(torch.float8_e4m3fn)
    assert lampfast.report({"codes": codes, name: torch.randn(8, 8)}, 0.5).numel == 128


def test_tied_codes_need_the_same_scales() -> None:
    codes = torch.randn(8, 8).to(torch.float8_e4m3fn)
    state = {"a": codes, "a_scale": torch.tensor(2.0), "b": codes, "b_scale": torch.tensor(2.0)}
    assert lampfast.report(state, 0.5).numel == 64
    for others in ({"b_scale": torch.tensor(3.0)}, {"b_scale": None}):
        differing = {name: it for name, it in (state | others).items() if it is not None}
        with refused(ValueError, "'b' is tied to 'a'", "same scales", keeps=[codes]):
            lampfast.prune(differing, 0.5)
