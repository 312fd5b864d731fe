"""n:m patterns: masks to the bit against the oracle, and what is kept against the definition."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import strategies
import torch
from compare import assert_same_masks, assert_same_memory, pruned_copy
from cpu_settings import CpuSettings
from hypothesis import assume, given
from hypothesis import strategies as st
from layouts import MODULES
from refusal import refused
from strategies import Model
from torch import nn

import lampfast
from lampfast import _patterns, reference
from lampfast._patterns import Grouped

VERBS: Any = (lampfast.prune, lampfast.masks, lampfast.report, lampfast.layerwise_sparsity)
# Any, and more often those that the kernels know, those around them, and the largest.
sizes = st.sampled_from([2, 3, 4, 5, 8, 16, 17, 64]) | st.integers(2, 64)


def _dimensional(model: Model) -> Model:
    found = {name: layer for name, layer in model.items() if layer.dim() > 0}
    assume(found)
    return found


@pytest.mark.filterwarnings("ignore:pattern=")
@given(st.data(), strategies.models(), sizes, strategies.cpus)
def test_masks_and_prune(data: st.DataObject, model: Model, m: int, cpu: CpuSettings) -> None:
    model = _dimensional(model)
    n = data.draw(st.integers(1, m), "n")
    least = min(layer.dim() for layer in model.values())
    dim = data.draw(st.integers(-least, least - 1), "dim")
    cpu.use()
    expected = reference.group_masks(model, n, m, dim)
    pattern = f"{n}:{m}"
    assert_same_masks(lampfast.masks(model, pattern=pattern, dim=dim), expected)
    planned = lampfast.report(model, pattern=pattern, dim=dim)
    assert [it.kept for it in planned.layers] == [int(mask.sum()) for mask in expected.values()]
    pruned = {name: pruned_copy(layer, expected[name]) for name, layer in model.items()}
    assert lampfast.prune(model, pattern=pattern, dim=dim).to_dict() == planned.to_dict()
    assert_same_memory(model, pruned)


@pytest.mark.filterwarnings("ignore:pattern=")
@given(st.data(), strategies.models(), sizes, strategies.cpus)
def test_importances(data: st.DataObject, model: Model, m: int, cpu: CpuSettings) -> None:
    model = _dimensional(model)
    importance = data.draw(strategies.importances(model), "importance")
    cpu.use()
    expected = reference.group_masks(model, 1, m, 0, importance)
    options: Any = {"pattern": f"1:{m}", "dim": 0, "importance": importance}
    assert_same_masks(lampfast.masks(model, **options), expected)
    pruned = {name: pruned_copy(layer, expected[name]) for name, layer in model.items()}
    lampfast.prune(model, **options)
    assert_same_memory(model, pruned)


def _largest(magnitudes: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """Masks of groups along the last dimension, by torch's stable sort; of ties the later."""
    mask = torch.zeros(magnitudes.shape, dtype=torch.bool)
    whole = magnitudes.shape[-1] // m * m
    for first, last, size in (
        (0, whole, m),
        (whole, magnitudes.shape[-1], magnitudes.shape[-1] % m),
    ):
        if first == last:
            continue
        groups = magnitudes[..., first:last].reshape(*magnitudes.shape[:-1], -1, size)
        kept = -(-n * size // m)
        ascending = groups.sort(dim=-1, stable=True).indices
        found = torch.zeros(groups.shape, dtype=torch.bool)
        found.scatter_(-1, ascending[..., size - kept :], True)
        mask[..., first:last] = found.flatten(-2)
    return mask


# Shape, dimension, and how the tensor lies in memory. Groups are contiguous, lie in turns (as the
# inputs of convolutions), or far apart; with and without a remainder, in whole tensors and slices.
_LAYOUTS: dict[str, tuple[tuple[int, ...], int, Callable[[torch.Tensor], torch.Tensor]]] = {
    "rows": ((48, 640), 1, torch.clone),
    "ragged rows": ((27, 1003), 1, torch.clone),
    "rows of a slice": ((32, 500), 1, lambda it: nn.functional.pad(it, (3, 2))[:, 3:-2]),
    "every other column": ((32, 500), 1, lambda it: torch.stack([it, it], 2)[..., 1]),
    "transposed rows": ((640, 48), 0, lambda it: it.t().contiguous().t()),
    "columns": ((640, 75), 0, torch.clone),
    "columns of a slice": ((640, 49), 0, lambda it: nn.functional.pad(it, (1, 0))[:, 1:]),
    "kernels of 3 by 3": ((8, 200, 3, 3), 1, torch.clone),
    "channels last": (
        (8, 200, 3, 3),
        1,
        lambda it: it.contiguous(memory_format=torch.channels_last),
    ),
    "kernels of 5": ((24, 130, 5), 1, torch.clone),
    "kernels of 1": ((24, 640, 1), 1, torch.clone),
    "transposed experts": ((3, 200, 40), 1, torch.clone),
}


# One for each size of network; those with an odd n have ties in many groups.
_PATTERNS = [
    (2, 4),
    (1, 2),
    (3, 7),
    (4, 8),
    (5, 13),
    (8, 16),
    (9, 23),
    (4, 32),
    (33, 40),
    (32, 64),
    (1, 16),
    (63, 64),
]


def _with_ties(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Weights with many equal magnitudes, and zeros of both signs."""
    weights = torch.randn(shape).mul_(4).round_()
    return torch.where(torch.rand(shape) < 0.2, weights * 0, weights).to(dtype)


@pytest.mark.parametrize("dtype", strategies.DTYPES, ids=str)
@pytest.mark.parametrize("layout", _LAYOUTS)
def test_layouts(dtype: torch.dtype, layout: str) -> None:
    shape, dim, lay_out = _LAYOUTS[layout]
    turn = strategies.DTYPES.index(dtype)
    for n, m in _PATTERNS[turn % 4 :: 4]:
        values = _with_ties(shape, dtype) if n % 2 else torch.randn(shape).to(dtype)
        expected = _largest(values.double().abs().movedim(dim, -1), n, m).movedim(-1, dim)
        layer = lay_out(values.float()).to(dtype)
        kept = lampfast.masks([layer], pattern=f"{n}:{m}", dim=dim)["0"]
        assert torch.equal(kept, expected)
        other = torch.ones(shape, dtype=strategies.DTYPES[m % len(strategies.DTYPES)])
        lampfast.prune({"0": other}, pattern=f"{n}:{m}", dim=dim, importance={"0": layer})
        assert torch.equal(other != 0, expected)
        lampfast.prune([layer], pattern=f"{n}:{m}", dim=dim)
        assert torch.equal(layer.double(), values.double() * expected)


@pytest.mark.parametrize("dtype", strategies.DTYPES, ids=str)
def test_only_the_layer_is_written(dtype: torch.dtype) -> None:
    """What lies between and around the elements of a slice stays as it was."""
    whole = torch.randn(40, 300).to(dtype)
    for m in (3, 4, 7, 16, 33):
        for dim, where in (
            (1, (slice(3, -3), slice(5, -2))),
            (0, (slice(1, None), slice(7, -1))),
            (1, (slice(None, None, 2), slice(1, None, 2))),
        ):
            layer, expected = whole[where], whole.double().clone()
            magnitudes = layer.double().abs().movedim(dim, -1)
            expected[where] *= _largest(magnitudes, 1, m).movedim(-1, dim)
            lampfast.prune([layer], pattern=f"1:{m}", dim=dim)
            assert torch.equal(whole.double(), expected)


@pytest.mark.parametrize("dtype", strategies.DTYPES, ids=str)
@pytest.mark.parametrize("m", [2, 4, 8])
def test_groups_side_by_side(m: int, dtype: torch.dtype) -> None:
    """In blocks that are narrower and wider than vectors, one behind the other and with gaps."""
    for lanes in (1, 2, 3, 4, 7, 8, 9, 16, 17, 31, 33, 70):
        for gap in (0, 1):
            whole = _with_ties((7, 3 * m, lanes + gap), dtype)
            where = (slice(1, -1), slice(None), slice(lanes))
            layer, expected = whole[where], whole.double().clone()
            kept = _largest(layer.double().abs().movedim(1, -1), m // 2, m).movedim(-1, 1)
            expected[where] *= kept
            pattern = f"{m // 2}:{m}"
            assert torch.equal(lampfast.masks([layer], pattern=pattern, dim=1)["0"], kept)
            lampfast.prune([layer], pattern=pattern, dim=1)
            assert torch.equal(whole.double(), expected)


@pytest.mark.parametrize(("module", "dim"), MODULES)
def test_groups_lie_along_a_layers_inputs(module: nn.Module, dim: int) -> None:
    model = nn.Sequential(module)
    found = lampfast.masks(model, pattern="2:4")
    weights = {name: weight.detach() for name, weight in model.named_parameters() if name in found}
    assert_same_masks(found, reference.group_masks(weights, 2, 4, dim))


class Experts(nn.Module):
    """Experts as they multiply from the right, gate and up in one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.is_transposed = True
        self.gate_up_proj = nn.Parameter(torch.randn(3, 8, 12))
        self.down_proj = nn.Parameter(torch.randn(3, 6, 8))


def test_transposed_experts_have_their_inputs_first() -> None:
    model = nn.ModuleDict({"experts": Experts()})
    kept = lampfast.masks(model, pattern="2:4")
    gate_up, down = kept["experts.gate_up_proj"], kept["experts.down_proj"]
    assert (gate_up.reshape(3, 2, 4, 12).sum(2) == 2).all()
    assert (down[:, :4].sum(1) == 2).all()
    assert (down[:, 4:].sum(1) == 1).all()


def test_a_short_group_keeps_in_proportion_rounded_up() -> None:
    model = [torch.arange(1.0, 8.0).reshape(1, 7)]
    assert lampfast.masks(model, pattern="2:4")["0"].tolist() == [[0, 0, 1, 1, 0, 1, 1]]
    assert lampfast.masks(model, pattern="1:5")["0"].tolist() == [[0, 0, 0, 0, 1, 0, 1]]


shapes = st.tuples(st.integers(0, 5), st.integers(1, 20))


@given(st.data(), st.lists(shapes, min_size=1, max_size=6), sizes)
def test_each_layer_gets_an_n_of_its_own(
    data: st.DataObject, layers: list[tuple[int, int]], m: int
) -> None:
    grouped = [Grouped("", lines * extent, 1, extent) for lines, extent in layers]
    numels = [it.numel for it in grouped]
    assume(any(numels))
    asked = [data.draw(st.integers(0, numel)) for numel in numels]
    if sum(asked) * m < sum(numels):
        with pytest.raises(ValueError, match="less than one in a group"):
            _patterns.kept_of(asked, grouped, m)
        return
    counts = _patterns.kept_of(asked, grouped, m)

    def kept(i: int, n: int) -> int:
        weights = torch.ones(layers[i])
        return int(reference.group_masks({"": weights}, n, m, 1)[""].sum())

    # By definition: the largest n that does not keep more; then up, the largest rest first.
    floors = [
        max([n for n in range(m + 1) if kept(i, n) <= k][-1], min(k, 1))
        for i, k in enumerate(asked)
    ]
    rests = {}
    for i, (n, k) in enumerate(zip(floors, asked, strict=True)):
        if n < m and kept(i, n + 1) > kept(i, n) and k > kept(i, n):
            rests[i] = Fraction(k - kept(i, n), kept(i, n + 1) - kept(i, n))
    order = sorted(rests, key=lambda i: -rests[i])
    reachable = [
        [n + (i in order[:raised]) for i, n in enumerate(floors)]
        for raised in range(len(order) + 1)
    ]
    far = [abs(sum(kept(i, n) for i, n in enumerate(it)) - sum(asked)) for it in reachable]
    best = reachable[far.index(min(far))]  # of an empty layer any n keeps as many
    assert [n for n, k in zip(counts, numels, strict=True) if k] == [
        n for n, k in zip(best, numels, strict=True) if k
    ]


@pytest.mark.parametrize("method", ["lamp", "global", "uniform", "erk"])
def test_a_method_chooses_n(method: Any) -> None:
    model = {f"{i}": torch.randn(16, 32) * scale for i, scale in enumerate([1.0, 2.0, 0.1])}
    model["1"][:, :24] *= 0.01
    asked = lampfast.report(model, 0.6, method=method)
    report = lampfast.report(model, 0.6, method=method, pattern=":8")
    layers = [Grouped(name, 512, 1, 32) for name in model]
    counts = _patterns.kept_of([it.kept for it in asked.layers], layers, 8)
    assert [it.kept for it in report.layers] == [n * 64 for n in counts]
    masks = lampfast.masks(model, 0.6, method=method, pattern=":8")
    for name, n in zip(model, counts, strict=True):
        expected = reference.group_masks({name: model[name]}, n, 8, 1)
        assert torch.equal(masks[name], expected[name])
    assert abs(report.sparsity - 0.6) < 1 / 8


def test_an_allocation_chooses_n_for_each_layer_by_itself() -> None:
    model = {"a": torch.randn(8, 8), "b": torch.randn(8, 8)}
    report = lampfast.report(model, method={"a": 0.5}, pattern=":8")
    assert [it.kept for it in report.layers] == [32, 64]
    for others in (0.0, 0.4, 0.7, 1.0):
        report = lampfast.report(model, method={"a": others, "b": 0.6}, pattern=":4")
        assert report.layers[1].kept == 32
    with refused(ValueError, "layer 'a'", "at most 0.875", keeps=model.values()):
        lampfast.prune(model, method={"a": 0.9}, pattern=":8")


@pytest.mark.parametrize("pattern", ["2:4", ":4"])
def test_layers_whose_groups_are_too_short_are_told(pattern: str) -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3))
    sparsity = None if pattern == "2:4" else 0.25
    with pytest.warns(UserWarning, match=r"leaves layer '0.weight' as it is: along dimension 1"):
        report = lampfast.prune(model, sparsity, pattern=pattern)
    assert report.layers[0].kept == report.layers[0].numel


def test_pairs_in_lists_are_modules_too() -> None:
    module = nn.ConvTranspose2d(8, 6, 3)
    pairs: Any = [[module, "weight"]]
    masks = lampfast.masks(pairs, pattern="2:4")
    assert (masks["0.weight"].unflatten(0, (2, 4)).sum(1) == 2).all()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"pattern": 4}, TypeError, ["pattern is a int", "'2:4'"]),
        ({"pattern": "2-4"}, ValueError, ["'2-4'", "'n:m'"]),
        ({"pattern": "5:4"}, ValueError, ["'5:4' is out of range"]),
        ({"pattern": "0:4"}, ValueError, ["out of range"]),
        ({"pattern": "1:65"}, ValueError, ["m is 2 to 64"]),
        ({"pattern": ":1", "sparsity": 0.5}, ValueError, ["out of range"]),
        ({"pattern": "2:4", "sparsity": 0.5}, TypeError, ["leave sparsity and method out", "':4'"]),
        ({"pattern": "2:4", "method": "erk"}, TypeError, ["leave sparsity and method out"]),
        ({"pattern": "2:4", "method": {"*": 0.5}}, TypeError, ["leave sparsity and method out"]),
        ({"pattern": ":4"}, TypeError, ["sparsity is missing"]),
        ({"pattern": ":4", "sparsity": 0.9}, ValueError, ["less than one in a group of 4"]),
        ({"pattern": "2:4", "dim": 2}, ValueError, ["dim=2", "layer '0' of shape (4, 8)"]),
        ({"pattern": "2:4", "dim": "in"}, TypeError, ["dim is a str"]),
        ({"dim": 1, "sparsity": 0.5}, TypeError, ["there is no pattern"]),
    ],
)
def test_what_is_no_pattern(
    arguments: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    weight = torch.ones(4, 8)
    for verb in VERBS:
        with refused(error, *words, keeps=[weight]):
            verb([weight], **arguments)


def test_values_that_cannot_be_ranked() -> None:
    weight = torch.randn(40, 8)
    weight[7, 3] = torch.nan
    for verb in VERBS:
        for pattern in ("2:4", "3:5"):
            with refused(ValueError, "layer '1'", "nan at index (7, 3)", keeps=[weight]):
                verb([torch.ones(3, 3), weight], pattern=pattern)
    with refused(ValueError, "layer '0' has no dimension", keeps=[weight]):
        lampfast.prune([torch.ones(())], pattern="2:4")


def test_zeros_are_kept_through_training() -> None:
    model = nn.Linear(16, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    kept = lampfast.keep_zeros(model, optimizer)
    lampfast.prune(model, pattern="2:4")
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 16)).square().sum().backward()
        optimizer.step()
    assert (model.weight.reshape(8, 4, 4).count_nonzero(2) == 2).all()
    kept.remove()


def test_a_schedule_gives_the_sparsity_of_a_pattern() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = lampfast.schedules.cubic(0.75, 4)
    pruner = lampfast.Pruner(model, optimizer, schedule, pattern=":8")
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(4, 16)).square().sum().backward()
        optimizer.step()
        pruner.step()
    assert abs(pruner.report.sparsity - 0.75) < 1 / 8
    for weight in (it for it in model.parameters() if it.ndim == 2):
        counts = weight.reshape(-1, 8).count_nonzero(1)
        assert (counts == counts[0]).all()
    with pytest.raises(ValueError, match=r"pass pattern=':4', or prune once"):
        lampfast.Pruner(model, optimizer, schedule, pattern="2:4")
    with pytest.raises(ValueError, match=r"schedule ends at 0.9, .* at most 0.875"):
        lampfast.Pruner(model, optimizer, lampfast.schedules.cubic(0.9, 4), pattern=":8")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_layout_that_torch_compresses(dtype: torch.dtype) -> None:
    """The weight comes back from its compressed form, which needs no GPU, whatever was zero."""
    from torch.sparse import _semi_structured_conversions

    layout: Any = _semi_structured_conversions
    weight = torch.randn(64, 128).to(dtype)
    weight[torch.rand(64, 128) < 0.3] = 0
    lampfast.prune([weight], pattern="2:4")
    values, places = layout.sparse_semi_structured_from_dense_cutlass(weight)
    assert values.shape == (64, 64)
    back = layout.sparse_semi_structured_to_dense_cutlass(values, places)
    assert torch.equal(back, weight)
