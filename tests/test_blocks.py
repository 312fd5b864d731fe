"""Blocks: masks to the bit against the oracle, whatever the tiles, dtypes and memory formats."""

import math
from typing import Any
from unittest import mock

import pytest
import strategies
import torch
from compare import assert_same_masks, assert_same_memory, pruned_copy
from cpu_settings import FEW_AND_MANY, CpuSettings
from hypothesis import given
from hypothesis import strategies as st
from layouts import MODULES
from refusal import refused
from strategies import Model
from torch import distributed, nn

import lampfast
from lampfast import reference
from lampfast._engine import copies, gpus

VERBS: Any = (lampfast.prune, lampfast.masks, lampfast.report, lampfast.layerwise_sparsity)
METHODS = ("lamp", "global", "uniform", "erk")
lengths = st.one_of(st.integers(1, 5), st.sampled_from([8, 2**40]))
blocks = st.tuples(lengths, lengths)


@given(st.data(), strategies.models(), blocks, st.sampled_from(METHODS), strategies.cpus)
def test_masks_and_prune(
    data: st.DataObject, model: Model, block: tuple[int, int], method: Any, cpu: CpuSettings
) -> None:
    sparsity = data.draw(strategies.amounts(strategies.numel(model)), "sparsity")
    cpu.use()
    expected = reference.block_masks(model, sparsity, block, method=method)
    options: Any = {"method": method, "block": block}
    assert_same_masks(lampfast.masks(model, sparsity, **options), expected)
    planned = lampfast.report(model, sparsity, **options)
    assert [it.kept for it in planned.layers] == [int(mask.sum()) for mask in expected.values()]
    pruned = {name: pruned_copy(layer, expected[name]) for name, layer in model.items()}
    assert lampfast.prune(model, sparsity, **options).to_dict() == planned.to_dict()
    assert_same_memory(model, pruned)


@strategies.fewer
@given(st.data(), strategies.models(), blocks, strategies.cpus)
def test_importances(
    data: st.DataObject, model: Model, block: tuple[int, int], cpu: CpuSettings
) -> None:
    importance = data.draw(strategies.importances(model), "importance")
    sparsity = data.draw(strategies.amounts(strategies.numel(model)), "sparsity")
    cpu.use()
    expected = reference.block_masks(model, sparsity, block, importance=importance)
    options: Any = {"block": block, "importance": importance}
    assert_same_masks(lampfast.masks(model, sparsity, **options), expected)
    pruned = {name: pruned_copy(layer, expected[name]) for name, layer in model.items()}
    lampfast.prune(model, sparsity, **options)
    assert_same_memory(model, pruned)


@strategies.fewer
@given(st.data(), strategies.models(), blocks)
def test_an_allocation_prunes_each_layer_by_itself(
    data: st.DataObject, model: Model, block: tuple[int, int]
) -> None:
    allocation = {
        name: data.draw(strategies.amounts(layer.numel())) for name, layer in model.items()
    }
    if allocation:
        kept = lampfast.masks(model, method=allocation, block=block)
        for name, layer in model.items():
            assert_same_masks(
                {name: kept[name]}, reference.block_masks({name: layer}, allocation[name], block)
            )


def _tie(base: torch.Tensor, kind: str) -> torch.Tensor:
    """Tiles of 1 by 16 whose sums are equal only as real numbers, or nearly so."""
    if kind == "permuted":
        order = torch.stack([torch.randperm(16) for _ in range(len(base))])
        return base[0].expand_as(base).gather(1, order)
    tiles = torch.zeros_like(base)
    tiles[0::2, 0] = 5
    tiles[1::2, 0], tiles[1::2, 7] = 3, 4
    if kind == "nearly":  # 25 + 2^-96 and less: a double does not see it
        tiles[::3, 3] = 2.0**-48
        tiles[::5, 9] = 2.0**-49
    return tiles


@pytest.mark.parametrize("kind", ["permuted", "pythagoras", "nearly"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("method", ["lamp", "global", "uniform"])
def test_sums_that_are_equal_as_real_numbers(kind: str, dtype: torch.dtype, method: Any) -> None:
    torch.manual_seed(0)
    layers = {name: _tie(torch.randn(12, 16), kind).to(dtype) for name in "ab"}
    layers["b"] *= 2  # scores tie across layers, too
    for sparsity in (0.1, 0.5, 0.8):
        expected = reference.block_masks(layers, sparsity, (1, 16), method=method)
        found = lampfast.masks(layers, sparsity, block=(1, 16), method=method)
        assert_same_masks(found, expected)


def _by_torch(layer: torch.Tensor, r: int, c: int, count: int) -> torch.Tensor:
    """The mask of one layer by float64 sums, where these are exact."""
    rows, columns = layer.shape
    squares = torch.zeros(-(-rows // r) * r, -(-columns // c) * c, dtype=torch.float64)
    squares[:rows, :columns] = layer.double().square()
    tiled = (squares.shape[0] // r, r, squares.shape[1] // c, c)
    sums = squares.reshape(tiled).sum((1, 3))
    sizes = torch.zeros_like(squares)
    sizes[:rows, :columns] = 1
    sizes = sizes.reshape(tiled).sum((1, 3)).flatten()
    order = sums.flatten().sort(stable=True).indices
    gone = order[sizes[order].cumsum(0) <= count]
    kept = torch.ones(sums.numel(), dtype=torch.bool)
    kept[gone] = False
    spread = kept.reshape(sums.shape).repeat_interleave(r, 0).repeat_interleave(c, 1)
    return spread[:rows, :columns]


@pytest.mark.parametrize("dtype", strategies.DTYPES, ids=str)
@pytest.mark.parametrize("block", [(1, 4), (4, 1), (16, 16), (3, 5), (1, 5000), (5000, 1)])
def test_large_layers(dtype: torch.dtype, block: tuple[int, int]) -> None:
    torch.manual_seed(0)
    r, c = (min(length, n) for length, n in zip(block, (1027, 771), strict=True))
    values = torch.randn(1027, 771).mul_(4).round_().to(dtype)  # with many ties
    expected = _by_torch(values, r, c, values.numel() // 2)
    for layer in (values, values.t().contiguous().t(), torch.stack([values, values], 2)[..., 1]):
        for cpu in FEW_AND_MANY[:: len(FEW_AND_MANY) - 1]:
            cpu.use()
            kept = lampfast.masks([layer], 0.5, block=block)["0"]
            assert torch.equal(kept, expected)
        pruned = layer.clone()
        lampfast.prune([pruned], 0.5, block=block)
        assert torch.equal(pruned.float(), torch.where(expected, layer.float(), 0.0))


def test_scores_of_many_tiles_are_those_of_exact_sums() -> None:
    """More tiles than are sorted as a whole: bins, their edges, and what they leave open."""
    torch.manual_seed(0)
    layers = {f"{i}": torch.randn(256, 256) * scale for i, scale in enumerate([1.0, 3.0, 1e-9])}
    layers["1"][:100] *= 0.01
    for method in ("lamp", "global"):
        for sparsity in (0.02, 0.5, 0.9):
            found = lampfast.masks(layers, sparsity, block=(1, 4), method=method)
            sums = {
                name: layer.double().square().reshape(-1, 4).sum(1)
                for name, layer in layers.items()
            }
            if method == "lamp":  # which ties nowhere here, and differs by far more than rounding
                for name, each in sums.items():
                    ascending, order = each.sort()
                    after = ascending.flip(0).cumsum(0).flip(0)
                    sums[name] = torch.empty_like(each).scatter_(0, order, ascending / after)
            every = torch.cat(list(sums.values()))
            last = every.sort().values[int(sparsity * 3 * 256 * 256) // 4 - 1]
            for name, each in sums.items():
                assert torch.equal(found[name].flatten()[::4], each > last)


@pytest.mark.parametrize(("module", "dim"), MODULES)
def test_tiles_lie_along_outputs_and_inputs(module: nn.Module, dim: int) -> None:
    model = nn.Sequential(module)
    found = lampfast.masks(model, 0.5, block=(2, 3))
    weights = {name: weight.detach() for name, weight in model.named_parameters() if name in found}
    assert_same_masks(found, reference.block_masks(weights, 0.5, (2, 3), dim))


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_rows_and_columns_are_neurons(form: torch.memory_format) -> None:
    weight = torch.randn(6, 5, 3, 3).contiguous(memory_format=form)
    rows = lampfast.masks([weight], 0.5, block="row")["0"].flatten(1)
    assert torch.equal(rows[:, 0], rows.all(1))
    assert int(rows[:, 0].sum()) == 3
    norms = weight.flatten(1).norm(dim=1)
    assert norms[~rows[:, 0]].max() < norms[rows[:, 0]].min()
    columns = lampfast.masks([weight], 0.5, block="column")["0"].movedim(1, 0).flatten(1)
    assert torch.equal(columns[:, 0], columns.all(1))
    assert int(columns[:, 0].sum()) == 3
    linear = nn.Linear(7, 4)
    lampfast.prune(linear, 0.6, block="column")
    assert int((linear.weight == 0).all(0).sum()) == 4


def test_no_more_weights_go_than_asked_for() -> None:
    weight = torch.tensor([[1.0, 1.0, 2.0, 2.0, 3.0]])
    for count, gone in enumerate([0, 0, 2, 2, 4, 5]):
        assert lampfast.prune([weight.clone()], count, block=(1, 2)).kept == 5 - gone
    # The first tile that does not fit is the last that is looked at: (3) alone would fit.
    assert lampfast.masks([weight], 3, block=(1, 2))["0"].tolist() == [[0, 0, 1, 1, 1]]


def test_tiles_that_are_zero_go_first_and_partly_zero_ones_do_not() -> None:
    weight = torch.tensor([[0.0, 0.0, 0.0, 9.0, 1.0, 1.0, 0.0, 0.0]])
    report = lampfast.prune([weight], 0.5, block=(1, 2))
    assert weight.tolist() == [[0.0, 0.0, 0.0, 9.0, 1.0, 1.0, 0.0, 0.0]]
    assert report.kept == 4
    lampfast.prune([weight], 0.75, block=(1, 2))
    assert weight.tolist() == [[0.0, 0.0, 0.0, 9.0, 0.0, 0.0, 0.0, 0.0]]


class Experts(nn.Module):
    """Experts as they multiply from the right, gate and up in one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.is_transposed = True
        self.gate_up_proj = nn.Parameter(torch.randn(3, 8, 12))
        self.down_proj = nn.Parameter(torch.randn(3, 6, 8))


def test_experts_are_layers() -> None:
    experts = Experts()
    kept = lampfast.masks(nn.ModuleDict({"experts": experts}), 0.5, block="row")
    gate_up = kept["experts.gate_up_proj"]  # each of whose columns is an output
    assert torch.equal(gate_up.any(1), gate_up.all(1))
    assert not gate_up.all()
    weights = {
        f"{i}": half
        for i, half in enumerate(
            part for it in experts.gate_up_proj.detach() for part in (it[:, :6], it[:, 6:])
        )
    }
    weights |= {f"d{i}": it for i, it in enumerate(experts.down_proj.detach())}
    expected = reference.block_masks(weights, 0.5, (1, 100), 0)
    assert torch.equal(gate_up[0][:, :6], expected["0"])
    assert torch.equal(kept["experts.down_proj"][2], expected["d2"])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"block": 4}, TypeError, ["block is a int", "(r, c)"]),
        ({"block": "rows"}, ValueError, ["block='rows' is not known", "'row'"]),
        ({"block": (4,)}, ValueError, ["block has 1 numbers"]),
        ({"block": (0, 4)}, ValueError, ["block[0]", "is 0"]),
        ({"block": (4, 1.5)}, TypeError, ["block[1]", "1.5"]),
        ({"block": (4, 4), "pattern": ":4"}, TypeError, ["both given"]),
        ({"block": (4, 4), "dim": 1}, TypeError, ["dim=1"]),
        ({"block": (4, 4), "sparsity": None}, TypeError, ["sparsity is missing"]),
        ({"block": (4, 4), "stacked": "*"}, ValueError, ["layer '0[0]'", "block=(1, c)"]),
        ({"block": "row", "stacked": "*"}, ValueError, ["layer '0[0]'", "leave stacked= out"]),
    ],
)
def test_what_is_no_block(
    arguments: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    weight = torch.ones(4, 8)
    for verb in VERBS:
        with refused(error, *words, keeps=[weight]):
            verb({"0": weight}, **{"sparsity": 0.5, **arguments})


def test_rows_of_a_stack_have_tiles_of_one_row() -> None:
    weight = torch.randn(4, 8)
    kept = lampfast.masks({"w": weight}, 0.5, method="uniform", stacked="w", block=(1, 2))["w"]
    assert (kept.sum(1) == 4).all()


def test_values_that_cannot_be_ranked() -> None:
    weight = torch.randn(40, 8)
    weight[7, 3] = torch.nan
    for verb in VERBS:
        for method in ("lamp", "erk"):
            with refused(ValueError, "layer '1'", "nan at index (7, 3)", keeps=[weight]):
                verb([torch.ones(3, 3), weight], 0.5, method=method, block=(4, 4))


def test_scaled_layers_are_refused() -> None:
    codes = torch.ones(128, 128).to(torch.float8_e4m3fn)
    model = {"w": codes, "w_scale_inv": torch.ones(1, 1)}
    with refused(ValueError, "layer 'w' has scales", "importance=", keeps=[codes]):
        lampfast.prune(model, 0.5, block=(4, 4))


def test_masks_are_written_to_those_given() -> None:
    model = [torch.randn(9, 7)]
    out = {"0": torch.zeros(7, 9, dtype=torch.bool).t()}
    expected = lampfast.masks(model, 0.5, block=(2, 2))
    assert lampfast.masks(model, 0.5, block=(2, 2), out=out)["0"] is out["0"]
    assert torch.equal(out["0"], expected["0"])


def test_zeros_are_kept_through_training_and_grow_with_a_schedule() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    schedule = lampfast.schedules.cubic(0.75, 4)
    pruner = lampfast.Pruner(model, optimizer, schedule, block=(4, 4))
    before: list[torch.Tensor] = []
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.randn(4, 16)).square().sum().backward()
        optimizer.step()
        pruner.step()
        now = [it.detach() == 0 for it in model.parameters() if it.ndim == 2]
        assert all((zero >= old).all() for zero, old in zip(now, before, strict=False))
        before = now
    assert 0.75 - 16 / 768 < pruner.report.sparsity <= 0.75
    for zero in before:
        tiles = zero.reshape(len(zero) // 4, 4, -1, 4)
        assert torch.equal(tiles.all(3).all(1), tiles.any(3).any(1))
    with pytest.raises(ValueError, match="block='rows' is not known"):
        lampfast.Pruner(model, optimizer, schedule, block=wrong("rows"))


def wrong(value: object) -> Any:
    return value


def test_a_tile_may_be_a_whole_layer() -> None:
    model = {"a": torch.randn(3, 4), "b": torch.randn(5), "c": torch.tensor(2.0)}
    kept = lampfast.masks(model, 0.7, block=(2**40, 2**40))  # each of which scores 1
    assert [bool(mask.all()) for mask in kept.values()] == [False, True, True]
    assert math.prod(kept["b"].shape) == 5


def test_layers_on_a_gpu_go_through_host_memory() -> None:
    model = [torch.randn(8, 8), torch.randn(8, 8)]
    importance = {name: torch.randn(8, 8) for name in "01"}
    expected = lampfast.masks(model, 0.5, block=(2, 2), importance=importance)
    there = {it.untyped_storage()._cdata for it in model}

    def index(tensor: torch.Tensor) -> int:
        return 0 if tensor.untyped_storage()._cdata in there else gpus.HOST

    with (
        mock.patch.multiple(gpus, index=index, are_in_host=lambda tensors: False),
        mock.patch.object(copies, "_warned", set()),
    ):
        with pytest.warns(UserWarning, match="nor prune by block="):
            masks = lampfast.masks(model, 0.5, block=(2, 2), importance=importance)
        assert_same_masks(masks, expected)
        lampfast.prune(model, 0.5, block=(2, 2), importance=importance)
    for weight, mask in zip(model, expected.values(), strict=True):
        assert torch.equal(weight != 0, mask)


def test_a_group_of_one_rank() -> None:
    weight = torch.randn(8, 6)
    expected = lampfast.masks([weight], 0.5, block=(2, 2))["0"]
    backend: Any = distributed
    distributed.init_process_group("gloo", store=backend.HashStore(), rank=0, world_size=1)
    try:
        lampfast.prune([weight], 0.5, block=(2, 2), group=distributed.group.WORLD)
        assert torch.equal(weight != 0, expected)
    finally:
        distributed.destroy_process_group()
