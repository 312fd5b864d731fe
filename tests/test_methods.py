"""The baselines of the LAMP score: masks to the bit against the oracle, counts against formulas."""

from fractions import Fraction
from typing import Any

import cpu_settings
import numpy as np
import pytest
import strategies
import torch
from compare import assert_same_masks, assert_same_memory, pruned_copy
from cpu_settings import CpuSettings
from hypothesis import assume, given
from hypothesis import strategies as st
from refusal import refused
from strategies import Model
from test_large import CASES
from torch import nn

import lampfast
from lampfast import reference
from lampfast.methods import Method, kept_counts

methods = st.sampled_from(["global", "uniform", "uniform+", "erk"])

VERBS: Any = (lampfast.prune, lampfast.masks, lampfast.report, lampfast.layerwise_sparsity)
BY_COUNTS: tuple[Method, ...] = ("uniform", "uniform+", "erk")


def _expected(
    model: Model, s: float, method: Method, importance: Model | None = None
) -> dict[str, torch.Tensor]:
    """The oracle's masks; where it has none, lampfast's refusal is checked in their place."""
    try:
        return reference.masks(model, s, importance, method)
    except ValueError:
        with refused(ValueError, "uniform+", "keeps at least", keeps=model.values()):
            lampfast.prune(model, s, method=method, importance=importance)
    assume(False)
    raise AssertionError


@given(st.data(), strategies.models(), methods, strategies.cpus)
def test_masks(data: st.DataObject, model: Model, method: Method, cpu: CpuSettings) -> None:
    s = data.draw(strategies.amounts(strategies.numel(model)), "s")
    cpu.use()
    expected = _expected(model, s, method)
    assert_same_masks(lampfast.masks(model, s, method=method), expected)


@given(st.data(), strategies.models(), methods, strategies.cpus)
def test_prune_again_and_again(
    data: st.DataObject, model: Model, method: Method, cpu: CpuSettings
) -> None:
    total = strategies.numel(model)
    cpu.use()
    for k in sorted(data.draw(st.lists(st.integers(0, total), min_size=1, max_size=3), "counts")):
        masks = _expected(model, k, method)
        expected = {name: pruned_copy(layer, masks[name]) for name, layer in model.items()}
        planned = lampfast.report(model, k, method=method)
        report = lampfast.prune(model, k, method=method)
        assert_same_memory(model, expected)
        assert report == planned
        assert [row.kept for row in report.layers] == [int(m.sum()) for m in masks.values()]
        assert report.numel - report.kept == k


@given(st.data(), strategies.models(), methods)
def test_importance_takes_the_place_of_the_weights(
    data: st.DataObject, model: Model, method: Method
) -> None:
    importance = data.draw(strategies.importances(model), "importance")
    s = data.draw(strategies.amounts(strategies.numel(model)), "s")
    expected = _expected(model, s, method, importance)
    got = lampfast.masks(model, s, method=method, importance=importance)
    assert_same_masks(got, expected)


@pytest.mark.parametrize("name", CASES)
def test_large_layers(name: str) -> None:
    """Against a stable sort, which breaks ties by layer position and flat index."""
    rng = np.random.default_rng(sum(name.encode()))
    model = CASES[name](rng)
    sizes = [layer.detach().double().reshape(-1).abs().numpy() for layer in model.values()]
    total = sum(size.size for size in sizes)
    together = np.argsort(np.concatenate(sizes), kind="stable")
    apart = [np.argsort(size, kind="stable") for size in sizes]
    counts = [0, 1, total - 1, total, *(round(s * total) for s in (0.1, 0.5, 0.9, rng.random()))]
    for turn, k in enumerate(counts):
        cpu_settings.in_turn(turn).use()
        kept = np.ones(total, dtype=np.bool_)
        kept[together[:k]] = False
        parts = np.split(kept, np.cumsum([size.size for size in sizes])[:-1])
        assert_same_masks(lampfast.masks(model, k, method="global"), _shaped(model, parts))
        method = BY_COUNTS[turn % len(BY_COUNTS)]
        zeros = [int((size == 0).sum()) for size in sizes]
        shapes = [tuple(layer.shape) for layer in model.values()]
        if method == "uniform+" and k == total:
            method = "uniform"
        stay = kept_counts(method, total - k, shapes, zeros)
        parts = [np.ones(size.size, dtype=np.bool_) for size in sizes]
        for part, order, n in zip(parts, apart, stay, strict=True):
            part[order[: part.size - n]] = False
        assert_same_masks(lampfast.masks(model, k, method=method), _shaped(model, parts))


def _shaped(model: Model, parts: list[strategies.Array]) -> dict[str, torch.Tensor]:
    return {
        name: torch.from_numpy(part).reshape(layer.shape)
        for (name, layer), part in zip(model.items(), parts, strict=True)
    }


# --- counts ---

_shapes = st.lists(
    st.lists(st.integers(1, 6), min_size=0, max_size=4).map(tuple), min_size=1, max_size=6
)


@given(st.data(), _shapes, st.sampled_from(BY_COUNTS))
def test_counts_are_those_of_the_definition(
    data: st.DataObject, shapes: list[tuple[int, ...]], method: Method
) -> None:
    layers = {str(i): torch.ones(shape) for i, shape in enumerate(shapes)}
    zeros = [data.draw(st.integers(0, layer.numel()), "zeros") for layer in layers.values()]
    for layer, n in zip(layers.values(), zeros, strict=True):
        layer.view(-1)[:n] = 0.0
    kept = data.draw(st.integers(0, strategies.numel(layers)), "kept")
    try:
        expected = reference.kept_counts(layers, kept, method)
    except ValueError:
        with pytest.raises(ValueError, match="keeps at least"):
            kept_counts(method, kept, shapes, zeros)
        return
    counts = kept_counts(method, kept, shapes, zeros)
    assert counts == list(expected.values())
    assert sum(counts) == kept


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=50), st.floats(0, 1))
def test_uniform_is_within_one_weight_of_the_fraction(sizes: list[int], density: float) -> None:
    kept = round(density * sum(sizes))
    counts = kept_counts("uniform", kept, [(n,) for n in sizes], [0] * len(sizes))
    assert sum(counts) == kept
    for count, size in zip(counts, sizes, strict=True):
        assert abs(count - Fraction(kept * size, sum(sizes))) < 1


def test_erk_is_the_published_formula() -> None:
    """Density in proportion to (out + in/groups + sides) / size, dense where that exceeds 1."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.Conv2d(16, 16, 3, groups=16),
        nn.Conv1d(16, 32, 5, groups=2),
        nn.Linear(512, 100),
    )
    dimensions = [16 + 3 + 3 + 3, 16 + 1 + 3 + 3, 32 + 8 + 5, 100 + 512]
    sizes = [16 * 3 * 9, 16 * 9, 32 * 8 * 5, 512 * 100]
    kept = sum(sizes) // 10
    counts = [row.kept for row in lampfast.report(model, sum(sizes) - kept, method="erk").layers]
    assert counts[1] == sizes[1]  # its share would be 166, more than it has
    rest = kept - sizes[1]
    for i in (0, 2, 3):
        exact = Fraction(rest * dimensions[i], sum(dimensions) - dimensions[1])
        assert abs(counts[i] - exact) < 1


def test_uniform_plus_spares_the_first_and_the_last_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(100, 100), nn.Linear(100, 10))
    sparsity = lampfast.layerwise_sparsity(model, 0.9, method="uniform+")
    assert sparsity["0.weight"] == 0.0
    assert sparsity["2.weight"] == 0.8
    assert 0.92 < sparsity["1.weight"] < 0.95


def test_uniform_prunes_the_same_part_of_what_remains() -> None:
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 50))
    lampfast.prune(model[0], 0.5)
    sparsity = lampfast.layerwise_sparsity(model, 0.8, method="uniform")
    assert sparsity == {"0.weight": 0.85, "1.weight": 0.7}


def test_layerwise_sparsity_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for method in ("lamp", "global", *BY_COUNTS):
        sparsity = lampfast.layerwise_sparsity(model, 0.7, method=method)
        assert list(sparsity) == ["0.weight", "1.weight"]
        assert sum(sparsity[f"{i}.weight"] * n for i, n in enumerate((900, 150))) == 735
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_empty_model_has_nothing_to_share() -> None:
    for method in ("lamp", "global", *BY_COUNTS):
        assert lampfast.masks({}, 0.5, method=method) == {}


# --- errors ---


def test_an_unknown_method() -> None:
    model = {"a": torch.ones(3)}
    for call in (lampfast.prune, lampfast.masks, lampfast.report, lampfast.layerwise_sparsity):
        with refused(ValueError, "method='magnitude'", "'global'", keeps=model.values()):
            call(model, 0.5, method="magnitude")  # type: ignore[arg-type]


def test_a_method_without_a_sparsity() -> None:
    with pytest.raises(ValueError, match="no sparsity says how many"):
        lampfast.report({"a": torch.ones(3)}, method="erk")


@pytest.mark.parametrize("method", ["global", *BY_COUNTS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_not_finite(method: Method, dtype: torch.dtype) -> None:
    model = {"a": torch.ones(3, dtype=dtype), "b": torch.ones(2, 3, dtype=dtype)}
    model["b"][1, 2] = float("nan")
    with refused(ValueError, "layer 'b' has nan at index (1, 2)", keeps=model.values()):
        lampfast.prune(model, 0.4, method=method)


def test_uniform_plus_says_what_it_keeps() -> None:
    model = {"conv": torch.ones(4, 1, 3, 3), "fc": torch.ones(10, 10)}
    words = "136 weights it keeps at least 56", "asks it to keep 27"
    with refused(ValueError, *words, keeps=model.values()):
        lampfast.prune(model, 0.8, method="uniform+")
    assert lampfast.prune(model, 80, method="uniform+").kept == 56


@given(st.data(), strategies.models(), strategies.cpus)
def test_an_allocation_of_ones_own(data: st.DataObject, model: Model, cpu: CpuSettings) -> None:
    assume(model)
    cpu.use()
    amounts = {
        name: data.draw(strategies.amounts(strategies.numel({name: layer})), name)
        for name, layer in model.items()
    }
    expected = {
        name: reference.masks({name: layer}, amounts[name])[name] for name, layer in model.items()
    }
    assert_same_masks(lampfast.masks(model, method=amounts), expected)
    planned = lampfast.report(model, method=amounts)
    assert lampfast.layerwise_sparsity(model, method=amounts) == {
        layer.name: layer.sparsity for layer in planned.layers
    }
    pruned = {name: pruned_copy(layer, expected[name]) for name, layer in model.items()}
    assert lampfast.prune(model, method=amounts).to_dict() == planned.to_dict()
    assert_same_memory(model, pruned)


def _kept(model: Any, **arguments: Any) -> dict[str, int]:
    return {layer.name: layer.kept for layer in lampfast.report(model, **arguments).layers}


def test_a_name_goes_before_patterns_and_the_last_pattern_before_others() -> None:
    model = {name: torch.randn(10) for name in ("a.q", "a.k", "b.q", "b.k", "[x]")}
    kept = _kept(model, method={"b.k": 1.0, "*": 0.1, "a*": 0.2, "*.q": 3})
    assert kept == {"a.q": 7, "a.k": 8, "b.q": 7, "b.k": 0, "[x]": 9}
    assert _kept(model, method={"[x]": 0.5}) == {
        "a.q": 10,
        "a.k": 10,
        "b.q": 10,
        "b.k": 10,
        "[x]": 5,
    }


def test_the_name_of_a_stack_stands_for_its_slices() -> None:
    model = {"experts": torch.randn(3, 4, 5), "head": torch.randn(2, 5)}
    method = {"experts[1]": 0.25, "experts": 0.5, "*": 0.9}
    kept = _kept(model, method=method, stacked="experts")
    assert kept == {"experts[0]": 10, "experts[1]": 15, "experts[2]": 10, "head": 1}
    assert _kept(model, method={"experts[[]2]": 0.5}, stacked="experts")["experts[2]"] == 10


@pytest.mark.parametrize(
    ("method", "error", "words"),
    [
        ({}, ValueError, ["empty mapping"]),
        ({"c": 0.5}, ValueError, ["method='c' matches no name", "'a'"]),
        ({"a": 1.5}, ValueError, ["method['a'] is 1.5", "0.0 to 1.0"]),
        ({"a": 5}, ValueError, ["method['a'] is 5", "0 to 4"]),
        ({"a": "0.5"}, TypeError, ["method['a'] is a str"]),
        ({"a": True}, TypeError, ["method['a'] is a bool"]),
        ({0: 0.5}, TypeError, ["the key 0"]),
        ({"a": 0.5, "*": 0.1, "[ab]": 0.2}, ValueError, ["method['*'] decides no layer"]),
    ],
)
def test_what_is_no_allocation(method: Any, error: type[Exception], words: list[str]) -> None:
    weights = {"a": torch.ones(4), "b": torch.ones(2, 2)}
    for verb in VERBS:
        with refused(error, *words, keeps=weights.values()):
            verb(weights, method=method)


def test_a_sparsity_is_said_once() -> None:
    weight = torch.ones(4)
    for verb in VERBS:
        with refused(TypeError, "sparsity is 0.5", "leave the sparsity out", keeps=[weight]):
            verb([weight], 0.5, method={"0": 0.5})
        if verb is not lampfast.report:
            with refused(TypeError, "sparsity is missing", "fraction", keeps=[weight]):
                verb([weight])


@pytest.mark.parametrize("name", ["s", "amount"])
def test_other_names_of_the_sparsity_are_told_the_right_one(name: str) -> None:
    weight = torch.ones(4)
    for verb in VERBS:
        with refused(TypeError, f"{verb.__name__}()", "pass sparsity=0.5", keeps=[weight]):
            verb([weight], **{name: 0.5})
