"""Layers that are slices of a parameter: named, answered by parameter, pruned and kept as such."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from refusal import refused
from test_devices import far
from torch import nn

import lampfast
from lampfast._engine.stacks import Halves, Stack
from lampfast.parameters import find, named
from lampfast.reports import LeftOut


class TinyExperts(nn.Module):
    """Three experts as most models store them: gate above up, then down."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(3, 8, 5))
        self.gate_up_proj_bias = nn.Parameter(torch.randn(3, 8))
        self.down_proj = nn.Parameter(torch.randn(3, 5, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """All experts, weighted alike."""
        gate, up = (torch.einsum("ehi,bi->ebh", self.gate_up_proj, x)).chunk(2, -1)
        return torch.einsum("eoh,ebh->bo", self.down_proj, gate.sigmoid() * up)


class TinyMixture(nn.Module):
    """A router, experts, a gate of what all tokens share, and a plain layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(5, 3)
        self.experts = TinyExperts()
        self.shared_expert_gate = nn.Linear(5, 1)
        self.proj = nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """All experts, weighted alike."""
        return self.proj(self.experts(x))  # type: ignore[no-any-return]


NAMES = [
    *(f"experts.gate_up_proj[{i}].{half}" for i in range(3) for half in ("gate", "up")),
    *(f"experts.down_proj[{i}]" for i in range(3)),
    "proj.weight",
]


@pytest.fixture
def model() -> TinyMixture:
    torch.manual_seed(0)
    return TinyMixture()


def _apart(model: nn.Module, **choice: Any) -> dict[str, torch.Tensor]:
    """The layers of a model as tensors of their own."""
    return {
        name: torch.as_tensor(layer).detach().clone()
        for name, layer in named(model, **choice).items()
    }


def _by_layer(
    outputs: Mapping[str, torch.Tensor], model: nn.Module, **choice: Any
) -> dict[str, Any]:
    """Masks or scores by parameter as ones by layer."""
    stacks = find(model, **choice).layers.stacks
    parts: dict[str, Any] = {}
    for name, output in outputs.items():
        parts.update(stacks[name].cut(name, output) if name in stacks else {name: output})
    return parts


def _assert_equal(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_experts_are_layers_and_what_chooses_them_is_not(model: TinyMixture) -> None:
    layers = named(model)
    assert list(layers) == NAMES
    fused, expert = model.experts.gate_up_proj, layers["experts.gate_up_proj[1].up"]
    assert torch.equal(torch.as_tensor(expert), fused[1, 4:])
    assert torch.as_tensor(expert).data_ptr() == fused[1, 4:].data_ptr()
    assert [layer.name for layer in lampfast.report(model).layers] == NAMES
    assert list(lampfast.layerwise_sparsity(model, 0.5)) == NAMES


@pytest.mark.parametrize("method", ["lamp", "global", "uniform", "uniform+", "erk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slices_are_pruned_like_tensors_that_lie_apart(
    model: TinyMixture, method: Any, dtype: torch.dtype
) -> None:
    model.to(dtype)
    apart = _apart(model)
    masks = lampfast.masks(model, 0.6, method=method)
    assert {name: mask.shape for name, mask in masks.items()} == {
        name: model.get_parameter(name).shape for name in masks
    }
    _assert_equal(_by_layer(masks, model), lampfast.masks(apart, 0.6, method=method))
    _assert_equal(_by_layer(lampfast.scores(model), model), lampfast.scores(apart))
    ours = lampfast.prune(model, 0.6, method=method)
    theirs = lampfast.prune(apart, 0.6, method=method)
    assert ours.layers == theirs.layers
    _assert_equal(_apart(model), apart)
    for name, mask in masks.items():
        assert torch.equal(model.get_parameter(name) != 0, mask)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("order", ["concatenated", "interleaved"])
@pytest.mark.parametrize("write", [False, True])
def test_halves_lie_in_either_dimension_and_order(dim: int, order: Any, write: bool) -> None:
    torch.manual_seed(0)
    experts = TinyExperts()
    experts.gate_up_proj = nn.Parameter(torch.randn(3, 6, 8))
    vars(experts).update(is_transposed=dim == 2, is_concatenated=order == "concatenated")
    whole = experts.gate_up_proj.detach().movedim(dim, 0)
    n = len(whole) // 2
    halves = (whole[:n], whole[n:]) if order == "concatenated" else (whole[::2], whole[1::2])
    expected = {
        f"gate_up_proj[{i}].{name}": half.movedim(0, dim)[i]
        for i in range(3)
        for name, half in zip(("gate", "up"), halves, strict=True)
    }
    layers = {name: layer for name, layer in named(experts).items() if "gate" in name}
    _assert_equal(layers, expected)
    apart = {name: layer.clone() for name, layer in expected.items()}
    (lampfast.prune if write else lampfast.masks)(apart, 0.5)
    masks = lampfast.masks(experts, 0.5, include="gate_up_proj")
    if write:
        lampfast.prune(experts, 0.5, include="gate_up_proj")
        _assert_equal(layers, apart)
    else:
        found = _by_layer(masks, experts, include="gate_up_proj")
        _assert_equal(found, lampfast.masks(apart, 0.5))


def test_shapes_tell_where_nothing_is_marked() -> None:
    for fused, down, halves in [
        ((3, 8, 5), (3, 5, 4), Halves(1, "concatenated")),
        ((3, 5, 8), (3, 4, 5), Halves(2, "concatenated")),
        ((3, 5, 5), (3, 4, 5), None),
        ((3, 7, 5), (3, 5, 4), None),
    ]:
        experts = TinyExperts()
        experts.gate_up_proj = nn.Parameter(torch.randn(fused))
        experts.down_proj = nn.Parameter(torch.randn(down))
        assert find(experts).layers.stacks["gate_up_proj"] == Stack(3, halves)
    vars(experts)["has_gate"] = False
    assert find(experts).layers.stacks["gate_up_proj"] == Stack(3)


def test_experts_without_a_gate_and_experts_in_blocks_of_rows() -> None:
    class DbrxExpertGLU(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.moe_num_experts = 3
            self.w1 = nn.Parameter(torch.randn(12, 5))

    class ParallelExperts(nn.Module):
        def __init__(self, *shape: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(shape))

    blocks = DbrxExpertGLU()
    assert {name: tuple(layer.shape) for name, layer in named(blocks).items()} == {
        f"w1[{i}]": (4, 5) for i in range(3)
    }
    expected = lampfast.masks(_apart(blocks), 0.5)
    _assert_equal(_by_layer(lampfast.masks(blocks, 0.5), blocks), expected)
    array = blocks.w1.detach().abs().numpy()
    _assert_equal(
        lampfast.masks(blocks, 0.5, importance={"w1": array}), lampfast.masks(blocks, 0.5)
    )
    masks = {"w1": lampfast.masks(blocks, 0.5)["w1"].t().contiguous().t()}
    assert lampfast.apply(blocks, masks) == lampfast.apply(blocks, {"w1": masks["w1"].numpy()})
    assert torch.equal(blocks.w1 != 0, masks["w1"])

    mlp = nn.ModuleDict(
        {"input_linear": ParallelExperts(2, 8, 5), "output_linear": ParallelExperts(2, 5, 4)}
    )
    attention = nn.ModuleDict(
        {"input_linear": ParallelExperts(2, 8, 5), "output_linear": ParallelExperts(2, 5, 8)}
    )
    gated = find(nn.ModuleDict({"mlp": mlp, "attention": attention})).layers.stacks
    assert gated["mlp.input_linear.weight"].halves == Halves(1, "concatenated")
    assert gated["mlp.output_linear.weight"].halves is None
    assert gated["attention.input_linear.weight"].halves is None


def test_a_mixture_that_counts_its_experts() -> None:
    class TinyMoE(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_experts = 3
            self.w1 = nn.Parameter(torch.randn(3, 4, 5))
            self.table = nn.Parameter(torch.randn(2, 4, 5))
            self.pos_embed = nn.Parameter(torch.randn(3, 4, 5))

    assert list(named(TinyMoE())) == ["w1[0]", "w1[1]", "w1[2]"]
    left = {left.name: left.reason for left in lampfast.report(TinyMoE()).left_out}
    assert left == {"table": "bare parameter", "pos_embed": "position table"}


def test_patterns_mean_parameters_and_slices(model: TinyMixture) -> None:
    fused = "experts.gate_up_proj"
    assert list(named(model, include=fused)) == NAMES[:6]
    assert list(named(model, include=f"{fused}[1].up")) == [f"{fused}[1].up"]
    assert list(named(model, include=f"{fused}*.up")) == NAMES[1:6:2]
    assert list(named(model, include=["*down_proj[[]2]", "proj.weight"])) == NAMES[8:]
    assert list(named(model, exclude=fused)) == NAMES[6:]
    assert list(named(model, exclude=["*.gate", "experts.down_proj[1]"])) == [
        *NAMES[1:6:2],
        *("experts.down_proj[0]", "experts.down_proj[2]", "proj.weight"),
    ]
    assert list(named(model, exclude="experts.*[[]?]*")) == ["proj.weight"]
    with refused(ValueError, "down_proj[9]", "matches no name", keeps=model.parameters()):
        lampfast.prune(model, 0.5, exclude="experts.down_proj[9]")


def test_stacked_names_more_stacks(model: TinyMixture) -> None:
    weights = {"a": torch.randn(2, 3, 4), "b": torch.randn(3, 4), "c": torch.randn(4)}
    assert list(named(weights, stacked="a")) == ["a[0]", "a[1]", "b", "c"]
    assert list(named(weights, stacked=["a", "b"], exclude=["c", "b[1]"])) == [
        *("a[0]", "a[1]", "b[0]", "b[2]")
    ]
    with refused(ValueError, "'c' of shape (4,)", "two dimensions", keeps=weights.values()):
        lampfast.prune(weights, 0.5, stacked="*")
    assert list(named(weights, stacked="*", include="b")) == ["b[0]", "b[1]", "b[2]"]
    with refused(ValueError, "stacked='x' matches no name", keeps=weights.values()):
        lampfast.prune(weights, 0.5, stacked="x")
    arrays = {name: weight.numpy().copy() for name, weight in weights.items()}
    masks = lampfast.masks(arrays, 0.5, stacked=["a", "b"])
    for name, mask in lampfast.masks(weights, 0.5, stacked=["a", "b"]).items():
        assert np.array_equal(masks[name], mask.numpy())
    rows = lampfast.layerwise_sparsity(
        model, 0.4, method="uniform", include="proj.weight", stacked="*"
    )
    assert rows == {f"proj.weight[{i}]": 0.4 for i in range(5)}
    model.table = nn.Parameter(torch.randn(2, 4, 4))
    assert list(named(model, stacked="table")) == ["table[0]", "table[1]", *NAMES]


def test_what_no_slice_covers(model: TinyMixture) -> None:
    out = "experts.down_proj[1]"
    before = model.experts.down_proj[1].clone()
    masks = lampfast.masks(model, 0.7, exclude=out)
    assert masks["experts.down_proj"][1].all()
    scores = lampfast.scores(model, exclude=out)
    assert scores["experts.down_proj"][1].isnan().all()
    assert not scores["experts.down_proj"][::2].isnan().any()
    _assert_equal(
        _by_layer(masks, model, exclude=out), lampfast.masks(_apart(model, exclude=out), 0.7)
    )
    given = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    assert lampfast.masks(model, 0.7, exclude=out, out=given).keys() == given.keys()
    _assert_equal(given, masks)
    report = lampfast.prune(model, 0.7, exclude=out)
    assert torch.equal(model.experts.down_proj[1], before)
    assert LeftOut(out, (5, 4), 20, "left out by include= or exclude=") in report.left_out


def test_masks_into_masks_that_exist(model: TinyMixture) -> None:
    masks = lampfast.masks(model, 0.7)
    out = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    assert all(found is out[name] for name, found in lampfast.masks(model, 0.7, out=out).items())
    _assert_equal(out, masks)
    with refused(ValueError, "out", "experts.down_proj", keeps=model.parameters()):
        lampfast.masks(model, 0.7, out={**out, "experts.down_proj": torch.ones(3, 5).bool()})
    flat = out["experts.down_proj"].view(-1)[:25].view(5, 5)
    with refused(ValueError, "shares memory with", keeps=model.parameters()):
        lampfast.masks(model, 0.7, out={**out, "proj.weight": flat})


def test_importances_by_slice_or_whole(model: TinyMixture) -> None:
    wholes = {
        name: torch.rand_like(mask, dtype=torch.float32)
        for name, mask in lampfast.masks(model, 0.5).items()
    }
    apart = _by_layer(wholes, model)
    expected = lampfast.masks(_apart(model), 0.5, importance=apart)
    for importance in (
        wholes,
        apart,
        {
            **{name: value for name, value in apart.items() if "gate_up" not in name},
            "experts.gate_up_proj": wholes["experts.gate_up_proj"],
        },
    ):
        masks = lampfast.masks(model, 0.5, importance=importance)
        _assert_equal(_by_layer(masks, model), expected)
    keeps = list(model.parameters())
    both = {**apart, "experts.down_proj": wholes["experts.down_proj"]}
    with refused(ValueError, "both 'experts.down_proj' and its slice", keeps=keeps):
        lampfast.prune(model, 0.5, importance=both)
    wrong = {**wholes, "experts.down_proj": torch.ones(3, 4, 5)}
    with refused(ValueError, "'experts.down_proj' has shape (3, 4, 5)", "(3, 5, 4)", keeps=keeps):
        lampfast.prune(model, 0.5, importance=wrong)
    mixed = {**apart, "experts.down_proj[1]": apart["experts.down_proj[1]"].double()}
    with refused(ValueError, "float64 and not", keeps=keeps):
        lampfast.scores(model, importance=mixed)


def test_in_place_is_known_to_autograd(model: TinyMixture) -> None:
    fused = model.experts.gate_up_proj
    version, pointer = fused._version, fused.data_ptr()
    loss = model(torch.randn(2, 5)).sum()
    lampfast.prune(model, 0.5)
    assert fused._version > version
    assert fused.data_ptr() == pointer
    assert fused.requires_grad
    assert fused.grad_fn is None
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_errors_name_the_slice(model: TinyMixture) -> None:
    with torch.no_grad():
        model.experts.gate_up_proj[2, 5, 3] = torch.nan
    words = ("layer 'experts.gate_up_proj[2].up'", "nan at index (1, 3)")
    with refused(ValueError, *words, keeps=model.parameters()):
        lampfast.prune(model, 0.5)


def test_tied_stacks_count_once(model: TinyMixture) -> None:
    both = nn.ModuleDict({"a": model.experts, "b": TinyExperts()})
    both["b"].gate_up_proj = model.experts.gate_up_proj
    report = lampfast.report(both)
    assert [layer.name for layer in report.layers if "gate_up" in layer.name] == [
        f"a.gate_up_proj[{i}].{half}" for i in range(3) for half in ("gate", "up")
    ]
    assert list(lampfast.masks(both, 0.5)) == ["a.gate_up_proj", "a.down_proj", "b.down_proj"]
    assert "a.gate_up_proj[0].up" not in named(both, exclude="b.gate_up_proj[0].up")
    whole = torch.randn(2, 3, 3)
    weights = {"w": whole, "first": whole[0]}
    assert lampfast.prune(weights, 0.5, stacked="w").numel == 18
    with refused(ValueError, "'w[0]' is tied", keeps=[whole]):
        lampfast.masks({"first": whole[0], "w": whole}, 0.5, stacked="w")
    with refused(ValueError, "share part of their memory", keeps=[whole]):
        lampfast.prune({"w": whole, "part": whole[0, :2]}, 0.5, stacked="w")


def _train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(4, 5)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("move", ["stay", "double", "load"])
def test_zeros_are_kept_in_slices(model: TinyMixture, move: str) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    masks = lampfast.masks(model, 0.7)
    lampfast.prune(model, 0.7)
    kept = lampfast.keep_zeros(model, optimizer)
    if move == "double":
        model.double()
    elif move == "load":
        kept.load_state_dict(copy.deepcopy(kept.state_dict()))
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, 5, dtype=model.proj.weight.dtype)).square().mean().backward()
        optimizer.step()
    for name, mask in masks.items():
        assert torch.equal(model.get_parameter(name) != 0, mask), name
    lampfast.prune(model, 0.9)
    if move != "double":
        _train(model, optimizer)
        assert lampfast.report(model).sparsity == pytest.approx(0.9, abs=0.01)
    kept.update({name: torch.ones_like(mask) for name, mask in masks.items()})
    with torch.no_grad():
        for name in masks:
            model.get_parameter(name).add_(1.0)
    optimizer.step()
    assert lampfast.report(model).sparsity < 0.1


def test_only_the_zeros_of_layers_are_kept(model: TinyMixture) -> None:
    out = "experts.down_proj[1]"
    with torch.no_grad():
        model.experts.down_proj[1] = 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with lampfast.keep_zeros(model, optimizer, exclude=out):
        lampfast.prune(model, 0.7, exclude=out)
        _train(model, optimizer)
    assert model.experts.down_proj[1].any()
    assert lampfast.report(model, exclude=out).sparsity == pytest.approx(0.7, abs=0.01)
    saved = {name: torch.ones_like(value) for name, value in model.state_dict().items()}
    with torch.no_grad():
        model.experts.down_proj[1] = 0
    lampfast.rewind(model, saved, exclude=out)
    assert (model.experts.down_proj[1] == 1).all()
    assert lampfast.report(model, exclude=out).sparsity == pytest.approx(0.7, abs=0.01)


def test_a_pruner_prunes_slices(model: TinyMixture) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    schedule = lampfast.schedules.linear(0.8, 4)
    with lampfast.Pruner(model, optimizer, schedule, stacked="proj.weight") as pruner:
        for _ in range(4):
            _train(model, optimizer)
            pruner.step()
        assert len(pruner.report.layers) == 14
        assert pruner.report.sparsity == pytest.approx(0.8, abs=0.01)
        model.experts.down_proj = nn.Parameter(torch.randn(3, 5, 4))
        with pytest.raises(ValueError, match=r"'experts.down_proj' was replaced"):
            pruner._checked_layers()


def test_a_pruner_names_experts_that_are_zero(model: TinyMixture) -> None:
    with torch.no_grad():
        model.experts.down_proj[1] = 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.warns(UserWarning, match=r"layer 'experts.down_proj\[1\]' is zero throughout"):
        lampfast.keep_zeros(model, optimizer).remove()
    pruner = lampfast.Pruner(model, optimizer, lampfast.schedules.constant(0.5))
    with pytest.warns(UserWarning, match=r"layer 'experts.down_proj\[1\]' is zero throughout"):
        pruner.step()


def test_slices_on_devices_without_an_engine(model: TinyMixture) -> None:
    vars(model.experts).update(is_transposed=False, is_concatenated=False)
    out = "experts.down_proj[1]"
    masks, scores = lampfast.masks(model, 0.7, exclude=out), lampfast.scores(model, exclude=out)
    expected = copy.deepcopy(model)
    lampfast.prune(expected, 0.7, exclude=out)
    with far([model.experts.gate_up_proj, model.experts.down_proj]):
        _assert_equal(lampfast.masks(model, 0.7, exclude=out), masks)
        given = {name: torch.zeros_like(mask) for name, mask in masks.items()}
        lampfast.masks(model, 0.7, exclude=out, out=given)
        _assert_equal(given, masks)
        for name, found in lampfast.scores(model, exclude=out).items():
            assert torch.equal(found.nan_to_num(-1), scores[name].nan_to_num(-1))
        lampfast.prune(model, 0.7, exclude=out)
    _assert_equal(dict(model.named_parameters()), dict(expected.named_parameters()))


def test_wrappers_that_give_parameters_other_names(model: TinyMixture) -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._inner = model

        def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
            """Names without the wrapper's, as FullyShardedDataParallel gives them."""
            for name, parameter in super().named_parameters(*args, **kwargs):
                yield name.replace("_inner.", ""), parameter

    wrapper = Wrapper()
    assert list(named(wrapper)) == [f"_inner.{name}" for name in NAMES]
    assert list(named(wrapper, exclude="experts.gate_up_proj")) == [
        f"_inner.{name}" for name in NAMES[6:]
    ]
    assert list(named(wrapper, include="experts.down_proj")) == NAMES[6:9]


def test_a_fake_tensor_mode_is_refused(model: TinyMixture) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), pytest.raises(TypeError, match="FakeTensorMode is active"):
        lampfast.masks(model, 0.5)


def test_slices_of_a_mapping_are_whole() -> None:
    """Whether gate and up lie one after the other or interleaved is not to be seen in a shape."""
    experts = TinyExperts()
    state = {name: it for name, it in experts.state_dict().items() if "bias" not in name}
    layers = [f"{name}[{i}]" for name in state for i in range(3)]
    report = lampfast.report(state, stacked="*_proj")
    assert [layer.name for layer in report.layers] == layers
    assert len(lampfast.report(experts).layers) == 9
    halves = {
        name: part
        for layer, weight in named(state, stacked="*_proj").items()
        for name, part in (
            zip((f"{layer}.gate", f"{layer}.up"), weight.chunk(2), strict=True)  # type: ignore[union-attr]
            if "gate_up" in layer
            else [(layer, weight)]
        )
    }
    _assert_equal(_by_layer(lampfast.masks(experts, 0.5), experts), lampfast.masks(halves, 0.5))


def test_matrices_that_are_bare_parameters_of_known_classes() -> None:
    class CondConv2d(nn.Module):
        """A convolution that is mixed of several, each of which is a row."""

        def __init__(self) -> None:
            super().__init__()
            self.num_experts = 3
            self.weight = nn.Parameter(torch.randn(3, 18))
            self.bias = nn.Parameter(torch.randn(3, 2))

    class ZambaMambaMixer(nn.Module):
        """A projection for each head, and the states' decay."""

        def __init__(self) -> None:
            super().__init__()
            self.x_proj_weight = nn.Parameter(torch.randn(2, 3, 4))
            self.A_log = nn.Parameter(torch.randn(2, 4, 4))

    class XLNetRelativeAttention(nn.Module):
        """Projections to heads, and biases of each head."""

        def __init__(self) -> None:
            super().__init__()
            for name in "qkvor":
                self.register_parameter(name, nn.Parameter(torch.randn(4, 2, 2)))
            self.r_w_bias = nn.Parameter(torch.randn(2, 2))

    block = nn.ModuleDict({"routing_fn": nn.Linear(4, 3), "conv": CondConv2d()})
    model = nn.ModuleList([block, ZambaMambaMixer(), XLNetRelativeAttention()])
    assert {name: tuple(layer.shape) for name, layer in named(model).items()} == {
        **{f"0.conv.weight[{i}]": (18,) for i in range(3)},
        **{f"1.x_proj_weight[{i}]": (3, 4) for i in range(2)},
        **{f"2.{name}": (4, 2, 2) for name in "qkvor"},
    }
    expected = lampfast.masks(_apart(model), 0.5)
    _assert_equal(_by_layer(lampfast.masks(model, 0.5), model), expected)
    report = lampfast.prune(model, 0.5)
    assert [(left.name, left.reason) for left in report.left_out] == [
        ("0.routing_fn.weight", "router"),
        ("1.A_log", "bare parameter"),
    ]
