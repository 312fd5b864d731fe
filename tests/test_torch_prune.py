"""LAMP in code that prunes with torch.nn.utils.prune: exact masks, the rest as torch."""

import copy
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from compare import assert_same_masks
from hypothesis import given
from hypothesis import strategies as st
from refusal import refused
from strategies import Model, amounts, fewer, importances, models
from torch import nn
from torch.nn.utils import prune as torchs_prune

import lampfast
from lampfast import reference, torch_prune
from lampfast.torch_prune import (
    LAMPUnstructured,
    global_unstructured,
    lamp_unstructured,
    to_zeros,
)

prune: Any = torchs_prune  # its functions have no types

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
Pairs = list[tuple[nn.Module, str]]


class Holder(nn.Module):
    """A module that is nothing but its weight."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


def holders(model: Model) -> Pairs:
    """A module for every layer; torch's masks cannot be multiplied with float8."""
    narrow = (torch.float8_e4m3fn, torch.float8_e5m2)
    layers = (layer.half() if layer.dtype in narrow else layer for layer in model.values())
    return [(Holder(layer), "weight") for layer in layers]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2)
    )


def weights_of(model: nn.Module) -> Pairs:
    return [(m, "weight") for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def images() -> torch.Tensor:
    return torch.randn(5, 3, 6, 6)


def origin(module: nn.Module, name: str) -> torch.Tensor:
    parameter = getattr(module, f"{name}_orig", None)
    return module.get_parameter(name) if parameter is None else parameter


def mask_of(module: nn.Module, name: str) -> torch.Tensor:
    """The module's mask; True everywhere where it is not pruned."""
    mask = getattr(module, f"{name}_mask", None)
    if mask is None:
        return torch.ones(origin(module, name).shape, dtype=torch.bool)
    assert isinstance(mask, torch.Tensor)
    assert torch.equal(mask, (mask == 1).to(mask.dtype))
    return mask == 1


def masks_of(pairs: Pairs) -> Model:
    return {str(i): mask_of(*pair) for i, pair in enumerate(pairs)}


def expected(pairs: Pairs, amount: float, importance: Model | None = None) -> Model:
    """By the definition: rank what remains of every layer, and mask it where it is pruned."""
    masks = masks_of(pairs)
    sources = {str(i): origin(*pair).detach() for i, pair in enumerate(pairs)} | (importance or {})
    left = {label: sources[label].contiguous()[mask] for label, mask in masks.items()}
    numel = sum(layer.numel() for layer in left.values())
    k = amount if isinstance(amount, int) else round(amount * numel)
    kept = reference.masks(left, k)
    assert sum(int(mask.sum()) for mask in kept.values()) == numel - k
    return {label: mask.masked_scatter(mask, kept[label]) for label, mask in masks.items()}


def assert_pruned(pairs: Pairs, masks: Model) -> None:
    """Require torch's reparametrisation with these masks."""
    assert_same_masks(masks_of(pairs), masks)
    for module, name in pairs:
        original, mask = module.get_parameter(f"{name}_orig"), module.get_buffer(f"{name}_mask")
        assert mask.dtype == original.dtype
        weight = getattr(module, name)
        assert torch.equal(weight, mask * original)
        assert weight.requires_grad
        assert name not in module._parameters


def step(pairs: Pairs) -> None:
    """Change every weight, masked or not, as an optimizer may."""
    for pair in pairs:
        weight = origin(*pair)
        with torch.no_grad():
            weight.copy_(weight.flatten().roll(1).view_as(weight))


@fewer
@given(models().filter(bool), st.data())
def test_global_masks_are_those_of_the_definition(model: Model, data: st.DataObject) -> None:
    pairs = holders(model)
    for _ in range(data.draw(st.integers(1, 4))):
        amount = data.draw(amounts(sum(int(mask.sum()) for mask in masks_of(pairs).values())))
        masks = expected(pairs, amount)
        global_unstructured(pairs, amount=amount)
        assert_pruned(pairs, masks)
        if data.draw(st.booleans()):
            step(pairs)


@fewer
@given(models(), st.data())
def test_one_layer_at_a_time(model: Model, data: st.DataObject) -> None:
    pairs = holders(model)
    for _ in range(data.draw(st.integers(1, 3))):
        for module, name in pairs:
            amount = data.draw(amounts(int(mask_of(module, name).sum())))
            masks = expected([(module, name)], amount)
            assert lamp_unstructured(module, name, amount) is module
            assert_pruned([(module, name)], masks)
        if data.draw(st.booleans()):
            step(pairs)


@fewer
@given(models().filter(bool), st.data())
def test_importances_take_the_place_of_the_weights(model: Model, data: st.DataObject) -> None:
    pairs = holders(model)
    drawn = list(data.draw(importances(model)).values())
    given_ones = [data.draw(st.booleans()) for _ in pairs]
    scores = {
        pair: s for pair, s, is_given in zip(pairs, drawn, given_ones, strict=True) if is_given
    }
    for _ in range(2):
        amount = data.draw(amounts(sum(int(mask.sum()) for mask in masks_of(pairs).values())))
        by_label = {str(pairs.index(pair)): score for pair, score in scores.items()}
        masks = expected(pairs, amount, by_label)
        global_unstructured(pairs, amount=amount, importance_scores=scores)
        assert_pruned(pairs, masks)


@fewer
@given(models(), st.data())
def test_importance_of_one_layer(model: Model, data: st.DataObject) -> None:
    for (module, name), score in zip(
        holders(model), data.draw(importances(model)).values(), strict=True
    ):
        for _ in range(2):
            amount = data.draw(amounts(int(mask_of(module, name).sum())))
            masks = expected([(module, name)], amount, {"0": score})
            lamp_unstructured(module, name, amount, score)
            assert_pruned([(module, name)], masks)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("amount", [0, 7, 0.3, 1.0])
def test_without_ties_one_layer_is_as_by_l1(dtype: torch.dtype, amount: float) -> None:
    torch.manual_seed(1)
    distinct = (torch.randperm(120) * (torch.randint(2, (120,)) * 2 - 1)).to(dtype).view(8, 15)
    ours, theirs = Holder(distinct), Holder(distinct.clone())
    times = 2 if amount in (7, 0.3) else 1
    for _ in range(times):
        method = LAMPUnstructured.apply(ours, "weight", amount)
        prune.L1Unstructured.apply(theirs, "weight", amount)
        assert torch.equal(ours.get_buffer("weight_mask"), theirs.get_buffer("weight_mask"))
    assert type(method) is (LAMPUnstructured if times == 1 else prune.PruningContainer)


def test_zeros_that_are_not_masked_remain() -> None:
    """Five elements remain, two of them zeros: half of five is two, and these go first."""
    module = Holder(torch.tensor([4.0, 0.0, 3.0, 0.0, 2.0, 1.0]))
    prune.custom_from_mask(module, "weight", torch.tensor([1, 1, 1, 1, 0, 1]))
    global_unstructured([(module, "weight")], amount=0.5)
    assert mask_of(module, "weight").tolist() == [True, False, True, False, False, True]


def test_the_score_is_relative_to_each_layer() -> None:
    """What torch's global_unstructured would erase: a layer of small weights."""
    large, small = Holder(torch.tensor([30.0, 40.0, 50.0])), Holder(torch.tensor([0.3, 0.4, 0.5]))
    pairs: Pairs = [(large, "weight"), (small, "weight")]
    global_unstructured(pairs, amount=2)
    assert [mask.tolist() for mask in masks_of(pairs).values()] == [[False, True, True]] * 2


def test_float_amounts_are_rounded_as_by_torch() -> None:
    for numel in range(1, 30):
        for amount in (0.05, 0.1, 0.25, 0.5, 0.75, 0.9):
            module, twin = Holder(torch.randn(numel)), Holder(torch.randn(numel))
            for _ in range(3):
                global_unstructured([(module, "weight")], amount=amount)
                prune.global_unstructured([(twin, "weight")], prune.L1Unstructured, amount=amount)
                ours, theirs = mask_of(module, "weight"), mask_of(twin, "weight")
                assert ours.sum() == theirs.sum()


def anatomy(module: nn.Module) -> list[Any]:
    """All that torch's pruning adds to modules, but for the values."""
    return [
        list(module.state_dict()),
        [(name, p.shape, p.dtype, p.requires_grad) for name, p in module.named_parameters()],
        [(name, b.shape, b.dtype, b.requires_grad) for name, b in module.named_buffers()],
        [list(submodule.__dict__) for submodule in module.modules()],
        [
            [(type(hook), [type(method) for method in hook], hook._tensor_name)]
            if isinstance(hook, prune.PruningContainer)
            else (type(hook).__bases__ if isinstance(hook, LAMPUnstructured) else type(hook))
            for submodule in module.modules()
            for hook in submodule._forward_pre_hooks.values()
        ],
        prune.is_pruned(module),
    ]


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_modules_are_as_torch_leaves_them(rounds: int) -> None:
    ours, theirs = net(), net()
    for _ in range(rounds):
        global_unstructured(weights_of(ours), amount=0.3)
        prune.global_unstructured(weights_of(theirs), prune.L1Unstructured, amount=0.3)
    assert prune.is_pruned(ours)
    assert anatomy(ours) == anatomy(theirs)
    for (module, name), (twin, _) in zip(weights_of(ours), weights_of(theirs), strict=True):
        parameter = origin(module, name)
        effective = getattr(module, name).detach().clone()
        prune.remove(module, name)
        prune.remove(twin, name)
        assert getattr(module, name) is parameter
        assert torch.equal(parameter, effective)
    assert not prune.is_pruned(ours)
    assert anatomy(ours) == anatomy(theirs)


def test_history_is_kept_beside_torchs_methods() -> None:
    module = nn.Linear(20, 10)
    remaining = 200

    def pruned(count: int) -> None:
        nonlocal remaining
        before = mask_of(module, "weight")
        remaining -= count
        assert mask_of(module, "weight").sum() == remaining
        assert not (before < mask_of(module, "weight")).any()

    prune.random_unstructured(module, "weight", 20)
    pruned(20)
    LAMPUnstructured.apply(module, "weight", 0.5)
    pruned(90)
    prune.l1_unstructured(module, "weight", 10)
    pruned(10)
    history = LAMPUnstructured.apply(module, "weight", 10)
    pruned(10)
    assert isinstance(history, prune.PruningContainer)
    assert [type(method) for method in history] == [
        prune.RandomUnstructured,
        LAMPUnstructured,
        prune.L1Unstructured,
        LAMPUnstructured,
    ]
    assert [method.amount for method in history] == [20, 0.5, 10, 10]
    (hook,) = module._forward_pre_hooks.values()
    assert hook is history


def test_the_method_prunes_tensors_as_torchs_do() -> None:
    tensor = torch.tensor([3.0, -1.0, 2.0, 1.0])
    method: Any = LAMPUnstructured(0.5)
    assert method.prune(tensor).tolist() == [3.0, 0.0, 2.0, 0.0]
    earlier = torch.tensor([0.0, 1.0, 1.0, 1.0])
    assert method.prune(tensor, earlier).tolist() == [0.0, 0.0, 2.0, 0.0]
    assert method.prune(tensor, earlier, -tensor.flip(0)).tolist() == [0.0, 0.0, 0.0, 1.0]


def test_masks_that_are_not_binary_keep_their_values() -> None:
    """As with torch, only elements whose mask is 1 are pruned."""
    module = Holder(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    prune.custom_from_mask(module, "weight", torch.tensor([0.5, 1.0, 1.0, 1.0]))
    global_unstructured([(module, "weight")], amount=1)
    assert module.get_buffer("weight_mask").tolist() == [0.5, 0.0, 1.0, 1.0]
    lamp_unstructured(module, "weight", 1)
    assert module.get_buffer("weight_mask").tolist() == [0.5, 0.0, 0.0, 1.0]
    to_zeros(module)
    assert module.weight.tolist() == [0.5, 0.0, 0.0, 4.0]


def test_state_goes_on_in_another_model() -> None:
    model, resumed = net(), net()
    global_unstructured(weights_of(model), amount=0.5)
    for module, name in weights_of(resumed):
        prune.identity(module, name)
    resumed.load_state_dict(model.state_dict())
    for each in (model, resumed):
        global_unstructured(weights_of(each), amount=0.5)
    assert_same_masks(masks_of(weights_of(resumed)), masks_of(weights_of(model)))


@pytest.mark.parametrize("foreach", [False, True])
def test_training_goes_through_the_originals(foreach: bool) -> None:
    model, twin = net(), net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=foreach)
    other = torch.optim.SGD(twin.parameters(), lr=0.1, foreach=foreach)
    for _ in range(3):
        pairs = weights_of(model)
        global_unstructured(pairs, amount=0.3)
        masks = masks_of(pairs)
        for _ in range(4):
            batch = images()
            optimizer.zero_grad()
            model(batch).square().sum().backward()
            optimizer.step()
            # The twin multiplies by the masks itself, and lets no gradient reach what they hide.
            other.zero_grad()
            with torch.no_grad():
                hidden = [w.clone() for w in twin.parameters()]
                for (module, name), mask in zip(weights_of(twin), masks.values(), strict=True):
                    module.get_parameter(name).mul_(mask)
            twin(batch).square().sum().backward()
            with torch.no_grad():
                for weight, value in zip(twin.parameters(), hidden, strict=True):
                    weight.copy_(value)
                for (module, name), mask in zip(weights_of(twin), masks.values(), strict=True):
                    gradient = module.get_parameter(name).grad
                    assert gradient is not None
                    gradient.mul_(mask)
            other.step()
    for (module, name), (same, _) in zip(weights_of(model), weights_of(twin), strict=True):
        assert torch.equal(origin(module, name), same.get_parameter(name))
    total = sum(int(mask.sum()) for mask in masks_of(weights_of(model)).values())
    numel = 4 * 27 + 512 + 16
    for _ in range(3):
        numel -= round(0.3 * numel)
    assert total == numel


EXAMPLE, CHANGE = re.findall(
    r"(?<=\n\n)((?:    .*\n|\n(?=    ))+)", inspect.getdoc(torch_prune) or "", re.MULTILINE
)


def test_the_documented_loop_switches_by_one_line() -> None:
    example = inspect.cleandoc(EXAMPLE)
    (line,) = [line for line in example.splitlines() if "global_unstructured" in line]
    changed = example.replace(line.strip(), CHANGE.strip())
    assert changed.count("\n") == example.count("\n")

    models: dict[str, lampfast.Report] = {}
    for code in (example, changed):
        model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 20))
        torch.manual_seed(2)
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        with torch.no_grad():
            model[2].get_parameter("weight").mul_(0.01)
        calls: list[nn.Module] = []
        exec(code, {"model": model, "train": calls.append, "torch_prune": torch_prune})
        assert len(calls) == 3
        assert not prune.is_pruned(model)
        models[code] = lampfast.report(model)
    numel = 1600
    for _ in range(3):
        numel -= round(0.2 * numel)
    assert [report.kept for report in models.values()] == [numel, numel]
    by_magnitude, by_lamp = (report.layers[1].kept for report in models.values())
    assert by_magnitude < 50 < 300 < by_lamp  # a layer of small weights


# Ties


def test_a_shared_parameter_counts_once() -> None:
    first, second, third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    third.weight = first.weight
    pairs: Pairs = [(first, "weight"), (second, "weight"), (third, "weight")]
    masks = expected(pairs[:2], 16)
    global_unstructured(pairs, amount=0.5)
    assert_pruned(pairs, {**masks, "2": masks["0"]})
    masks = expected(pairs[:2], 0.5)
    global_unstructured(pairs, amount=0.5)
    assert_pruned(pairs, {**masks, "2": masks["0"]})

    assert to_zeros(nn.ModuleList([first, second, third])) == ["0.weight", "1.weight", "2.weight"]
    assert first.weight is third.weight
    assert torch.count_nonzero(first.weight) + torch.count_nonzero(second.weight) == 8


def test_a_shared_parameter_with_different_masks() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    lamp_unstructured(first, "weight", 3)
    pairs: Pairs = [(first, "weight"), (second, "weight")]
    with unchanged(
        pairs, ValueError, "'0.weight'", "'1.weight'", "share one parameter", "to_zeros"
    ):
        global_unstructured(pairs, amount=0.5)


def test_parameters_that_share_memory() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = nn.Parameter(first.weight.detach())
    pairs: Pairs = [(first, "weight"), (second, "weight")]
    with unchanged(pairs, ValueError, "'1.weight'", "shares its memory"):
        global_unstructured(pairs, amount=0.5)
    second.weight = nn.Parameter(first.weight.detach()[1:])
    with unchanged(pairs, ValueError, "'0.weight'", "'1.weight'", "share part"):
        global_unstructured(pairs, amount=0.5)


# Errors


@contextmanager
def unchanged(pairs: Pairs, error: type[Exception], *words: str) -> Iterator[None]:
    """Require an error, and modules with the same parameters, hooks and history as before."""
    modules = nn.ModuleList(dict.fromkeys(module for module, _ in pairs))
    before, hooks = anatomy(modules), hooks_of(modules)
    identities = [id(parameter) for parameter in modules.parameters()]
    with refused(error, *words, keeps=[*modules.parameters(), *modules.buffers()]):
        yield
    assert anatomy(modules) == before
    assert hooks_of(modules) == hooks
    assert [id(parameter) for parameter in modules.parameters()] == identities


def hooks_of(modules: nn.Module) -> list[tuple[int, int, int]]:
    return [
        (key, id(hook), len(hook) if isinstance(hook, prune.PruningContainer) else 1)
        for module in modules.modules()
        for key, hook in module._forward_pre_hooks.items()
    ]


@pytest.fixture(params=[0, 1, 2], ids=["fresh", "pruned once", "pruned twice"])
def pairs(request: pytest.FixtureRequest) -> Pairs:
    pairs = weights_of(net())
    for _ in range(request.param):
        global_unstructured(pairs, amount=0.25)
    return pairs


AMOUNTS: list[tuple[Any, type[Exception]]] = [
    (1.5, ValueError),
    (-0.1, ValueError),
    (-1, ValueError),
    (10**6, ValueError),
    (float("nan"), ValueError),
    ("half", TypeError),
    (None, TypeError),
    (True, TypeError),
]


@pytest.mark.parametrize(("amount", "error"), AMOUNTS)
def test_a_bad_amount(pairs: Pairs, amount: Any, error: type[Exception]) -> None:
    with unchanged(pairs, error, "amount"):
        global_unstructured(pairs, amount=amount)
    with unchanged(pairs, error, "amount"):
        lamp_unstructured(*pairs[0], amount)
    with unchanged(pairs, error, "amount"):
        LAMPUnstructured.apply(*pairs[0], amount=amount)


def test_more_than_remains(pairs: Pairs) -> None:
    remaining = sum(int(mask.sum()) for mask in masks_of(pairs).values())
    with unchanged(pairs, ValueError, f"amount is {remaining + 1}", f"0 to {remaining}"):
        global_unstructured(pairs, amount=remaining + 1)
    global_unstructured(pairs, amount=remaining)
    assert not any(mask.any() for mask in masks_of(pairs).values())
    global_unstructured(pairs, amount=0.5)  # half of nothing


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(pairs: Pairs, value: float) -> None:
    with torch.no_grad():
        origin(*pairs[1])[2, 3] = value
    with unchanged(pairs, ValueError, "layer '1.weight'", str(value), "(2, 3)"):
        global_unstructured(pairs, amount=0.5)
    with unchanged(pairs, ValueError, "layer '0.weight'", str(value), "(2, 3)"):
        lamp_unstructured(*pairs[1], 0.5)


def test_importances_that_do_not_fit(pairs: Pairs) -> None:
    ones = torch.ones_like(origin(*pairs[1]))
    inf = ones.clone()
    inf[2, 3] = torch.inf
    cases: list[tuple[Any, type[Exception], tuple[str, ...]]] = [
        (ones[1:], ValueError, ("importance of layer", "(7, 64)", "(8, 64)")),
        (inf, ValueError, ("importance of layer", "inf", "(2, 3)")),
        (ones.int(), TypeError, ("importance of layer", "int32")),
        (ones.tolist(), TypeError, ("importance_scores", "list")),
    ]
    for scores, error, words in cases:
        with unchanged(pairs, error, *words):
            global_unstructured(pairs, amount=0.5, importance_scores={pairs[1]: scores})
        with unchanged(pairs, error, *words):
            lamp_unstructured(*pairs[1], 0.5, scores)
    wrong: Any
    for wrong, error in (
        ({(pairs[1][0], "bias"): ones}, ValueError),
        ({"1.weight": ones}, ValueError),
        ([ones], TypeError),
    ):
        with unchanged(pairs, error, "importance_scores"):
            global_unstructured(pairs, amount=0.5, importance_scores=wrong)


def test_pairs_that_are_none(pairs: Pairs) -> None:
    module = pairs[1][0]
    wrong: Any
    for wrong, error, words in (
        ([*pairs, (module, "wieght")], ValueError, ("position 3", "'wieght'", "weight")),
        ([*pairs, pairs[1]], ValueError, ("positions 1 and 3", "'weight'")),
        ([*pairs, module], TypeError, ("position 3", "Linear")),
        (["ab"], TypeError, ("position 0", "str")),
        ([*pairs, (module, 1)], TypeError, ("position 3", "(Linear, int)")),
        (module, TypeError, ("parameters is a Linear", "pairs")),
        (None, TypeError, ("parameters is a NoneType", "pairs")),
        ([], ValueError, ("parameters is empty", "pairs")),
        (iter([]), ValueError, ("parameters is empty",)),
    ):
        with unchanged(pairs, error, *words):
            global_unstructured(wrong, amount=0.5)
    with unchanged(pairs, ValueError, "no parameter 'wieght'"):
        lamp_unstructured(module, "wieght", 0.5)
    with unchanged(pairs, TypeError, "(Parameter, str)"):
        lamp_unstructured(origin(module, "weight"), "weight", 0.5)  # type: ignore[arg-type]


def test_computed_weights_and_taken_names(pairs: Pairs) -> None:
    computed = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    with unchanged(pairs, ValueError, "'3.weight'", "remove_parametrizations"):
        global_unstructured([*pairs, (computed, "weight")], amount=0.5)
    for taken in ("weight_orig", "weight_mask"):
        masked = nn.Linear(2, 2)
        masked.register_buffer(taken, torch.ones(2, 2))
        with unchanged([*pairs, (masked, "weight")], ValueError, taken, "'weight'"):
            global_unstructured([*pairs, (masked, "weight")], amount=0.5)


def test_dtypes_that_are_not_pruned(pairs: Pairs) -> None:
    whole = nn.Module()
    whole.register_parameter("weight", nn.Parameter(torch.ones(3).int(), requires_grad=False))
    with unchanged([*pairs, (whole, "weight")], TypeError, "'3.weight'", "int32"):
        global_unstructured([*pairs, (whole, "weight")], amount=0.5)
    with unchanged([(whole, "weight")], TypeError, "int32"):
        lamp_unstructured(whole, "weight", 0.5)
    narrow = Holder(torch.ones(3).to(torch.float8_e5m2))
    with unchanged([*pairs, (narrow, "weight")], TypeError, "'3.weight'", "float8_e5m2"):
        global_unstructured([*pairs, (narrow, "weight")], amount=0.5)


def test_ways_out_that_are_not_there_are_not_named(pairs: Pairs) -> None:
    """These functions have neither include= nor exclude=."""
    whole = Holder(torch.ones(3))
    whole.weight = nn.Parameter(torch.ones(3).int(), requires_grad=False)
    computed = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2))
    infinite = Holder(torch.full((3,), torch.inf))
    for module in (whole, computed, infinite):
        for call in (
            lambda module=module: global_unstructured([*pairs, (module, "weight")], amount=0.5),
            lambda module=module: lamp_unstructured(module, "weight", 0.5),
        ):
            with pytest.raises((TypeError, ValueError), match="leave") as caught:
                call()
            assert "clude" not in str(caught.value)


def test_attention_reads_the_weight_of_its_projection_without_its_hook(pairs: Pairs) -> None:
    attention = nn.MultiheadAttention(8, 2)
    for name in ("weight", "bias"):
        words = ("out_proj", f"{name!r}", "lampfast.prune")
        with unchanged(pairs, ValueError, "position 3", *words):
            global_unstructured([*pairs, (attention.out_proj, name)], amount=0.5)
        with unchanged(pairs, ValueError, *words):
            lamp_unstructured(attention.out_proj, name, 0.5)
    global_unstructured([(attention, "in_proj_weight")], amount=0.5)
    assert mask_of(attention, "in_proj_weight").sum() == 96
    assert lampfast.prune(attention, 0.5, include="out_proj.weight").kept == 32


def test_torchs_own_call_with_our_class() -> None:
    pairs, others = weights_of(net()), weights_of(net())
    global_unstructured(pairs, pruning_method=LAMPUnstructured, importance_scores=None, amount=0.4)
    global_unstructured(others, amount=0.4)
    for (module, name), (other, _) in zip(pairs, others, strict=True):
        assert torch.equal(mask_of(module, name), mask_of(other, name))
    global_unstructured(pairs, LAMPUnstructured, None, amount=1)


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (prune.L1Unstructured, "L1Unstructured"),
        (prune.RandomUnstructured, "RandomUnstructured"),
        (prune.LnStructured, "LnStructured"),
        (type("Mine", (LAMPUnstructured,), {}), "Mine"),
        (LAMPUnstructured(0.2), "a LAMPUnstructured"),
        (prune.l1_unstructured, "a function"),
    ],
)
def test_another_method_is_refused_with_the_line_to_write(
    pairs: Pairs, method: Any, name: str
) -> None:
    line = "global_unstructured(parameters, pruning_method=LAMPUnstructured, amount=0.2)"
    with unchanged(pairs, TypeError, f"pruning_method is {name}", line, "torch.nn.utils.prune"):
        global_unstructured(pairs, pruning_method=method, importance_scores=None, amount=0.2)


def test_torchs_own_global_function_is_refused(pairs: Pairs) -> None:
    """It would rank by magnitude and call it LAMP."""
    with unchanged(pairs, TypeError, "lampfast.torch_prune.global_unstructured"):
        prune.global_unstructured(pairs, LAMPUnstructured, amount=0.5)


def test_a_parameter_of_the_name_that_torch_gives_its_vector() -> None:
    module = nn.Module()
    module.register_parameter("temp", nn.Parameter(torch.tensor([3.0, 1.0, 2.0])))
    global_unstructured([(module, "temp")], amount=1)
    with unchanged([(module, "temp")], TypeError, "lampfast.torch_prune.global_unstructured"):
        lamp_unstructured(module, "temp", 1)
    global_unstructured([(module, "temp")], amount=1)
    assert mask_of(module, "temp").tolist() == [True, False, False]


def test_generators_are_fine() -> None:
    model = net()
    global_unstructured(iter(weights_of(model)), amount=0.5)
    assert sum(int(mask.sum()) for mask in masks_of(weights_of(model)).values()) == 318


# To plain zeros

METHODS: dict[str, Callable[[nn.Module], Any]] = {
    "lamp": lambda module: lamp_unstructured(module, "weight", 0.5),
    "global": lambda module: global_unstructured([(module, "weight")], amount=0.5),
    "l1": lambda module: prune.l1_unstructured(module, "weight", 0.5),
    "structured": lambda module: prune.ln_structured(module, "weight", 0.5, 2, 0),
    "custom": lambda module: prune.custom_from_mask(
        module,
        "weight",
        torch.arange(module.get_parameter("weight").numel()).view_as(module.get_parameter("weight"))
        % 2,
    ),
    "iterated": lambda module: [lamp_unstructured(module, "weight", 0.3) for _ in range(3)],
    "biases too": lambda module: [lamp_unstructured(module, n, 0.5) for n in ("weight", "bias")],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_zeros_are_those_of_remove(method: Callable[[nn.Module], Any], dtype: torch.dtype) -> None:
    ours, theirs = net().to(dtype), net().to(dtype)
    own = {id(parameter): parameter.data_ptr() for parameter in ours.parameters()}
    pruned: list[str] = []
    for model in (ours, theirs):
        for module, _ in weights_of(model):
            method(module)
    for name, module in theirs.named_modules():
        for parameter in ("weight", "bias"):
            if hasattr(module, f"{parameter}_mask"):
                prune.remove(module, parameter)
                pruned.append(f"{name}.{parameter}")
    assert to_zeros(ours) == pruned
    assert anatomy(ours) == anatomy(theirs)
    assert {id(p): p.data_ptr() for p in ours.parameters()} == own
    for weight, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(weight, other)
        assert not torch.signbit(weight[weight == 0]).any()
    assert to_zeros(ours) == []
    assert to_zeros(copy.deepcopy(ours)) == []


def test_the_optimizer_goes_on() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pairs = weights_of(model)
    for _ in range(2):
        global_unstructured(pairs, amount=0.4)
        optimizer.zero_grad()
        model(images()).square().sum().backward()
        optimizer.step()
    masks = masks_of(pairs)
    assert to_zeros(model) == ["0.weight", "3.weight", "5.weight"]
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in model.parameters()}
    for (module, name), mask in zip(pairs, masks.values(), strict=True):
        assert torch.equal(module.get_parameter(name) != 0, mask)

    assert lampfast.report(model).kept == sum(int(mask.sum()) for mask in masks.values())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.zero_grad()
    model(images()).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert lampfast.prune(model, 0.9).sparsity == pytest.approx(0.9, abs=1 / 600)


def test_values_of_the_last_step_are_kept() -> None:
    module = nn.Linear(4, 4)
    lamp_unstructured(module, "weight", 0.5)
    with torch.no_grad():
        module.get_parameter("weight_orig").add_(1)
    expected = module.get_parameter("weight_orig") * module.get_buffer("weight_mask")
    to_zeros(module)
    assert torch.equal(module.weight, expected)


def test_memory_format_and_views_stay() -> None:
    module = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    lamp_unstructured(module, "weight", 0.5)
    alias = module.get_parameter("weight_orig").detach()
    assert to_zeros(module) == ["weight"]
    assert module.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(alias, module.weight)
    assert torch.count_nonzero(alias) == 54


def test_masked_values_that_are_not_finite_become_zeros() -> None:
    module = Holder(torch.tensor([1.0, 2.0]))
    lamp_unstructured(module, "weight", 1)
    with torch.no_grad():
        module.get_parameter("weight_orig")[0] = torch.nan
    to_zeros(module)
    assert module.weight.tolist() == [0.0, 2.0]


def test_a_backward_that_the_conversion_made_stale_is_caught() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight  # not pruned: autograd keeps the parameter itself
    lamp_unstructured(first, "weight", 0.5)
    loss = second(torch.randn(2, 4, requires_grad=True)).sum()
    to_zeros(first)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_modules_that_are_used_twice_or_recurrent() -> None:
    shared, lstm = nn.Linear(4, 4), nn.LSTM(4, 4)
    model = nn.ModuleList([shared, shared, lstm])
    recurrent: Pairs = [(lstm, "weight_ih_l0"), (lstm, "weight_hh_l0")]
    global_unstructured([(shared, "weight"), *recurrent], amount=0.5)
    batch = torch.randn(3, 2, 4)
    output = lstm(batch)[0]
    assert to_zeros(model) == ["0.weight", "2.weight_ih_l0", "2.weight_hh_l0"]
    assert torch.equal(lstm(batch)[0], output)
    assert lampfast.report(model).kept == 72


def test_only_modules_are_converted() -> None:
    assert to_zeros(net()) == []
    with pytest.raises(TypeError, match="dict"):
        to_zeros({})  # type: ignore[arg-type]
