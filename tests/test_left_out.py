"""What is no layer of a model by default, and how that is told."""

import copy
import pickle
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from math import prod
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from refusal import refused
from torch import nn

import lampfast
from lampfast.parameters import named
from lampfast.reports import LayerReport, LeftOut, Report


def _reasons(model: nn.Module) -> dict[str, str]:
    return {left.name: left.reason for left in lampfast.report(model).left_out}


class Scale(nn.Module):
    """A table of its own, and a module of a class that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(4, 6))
        self.cls_token = nn.Parameter(torch.randn(1, 1, 6))
        self.mixing = nn.Parameter(torch.randn(4, 6))
        self.gamma = nn.Parameter(torch.randn(6))


class MyLinear(nn.Module):
    """A linear layer that is not torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 6))


def test_every_matrix_that_is_no_layer_is_told() -> None:
    model = nn.Sequential(
        nn.Embedding(5, 6), Scale(), nn.Linear(6, 6), nn.LayerNorm((4, 6)), MyLinear()
    )
    report = lampfast.report(model)
    assert report.left_out == (
        LeftOut("0.weight", (5, 6), 30, "embedding"),
        LeftOut("1.pos_embed", (4, 6), 24, "position table"),
        LeftOut("1.mixing", (4, 6), 24, "bare parameter"),
        LeftOut("4.weight", (3, 6), 18, "custom class MyLinear"),
    )
    assert report.coverage == 36 / (36 + 30 + 24 + 24 + 18)
    line = (
        "left out: 96 weights, 72.7% of all matrices' (1 embedding, 1 position table, 1 bare "
        "parameter, 1 custom class MyLinear)"
    )
    assert str(report).splitlines()[-1] == line
    assert "<p>left out: 96 weights" in report._repr_html_()
    assert report.to_dict()["coverage"] == report.coverage
    assert report.to_dict()["left_out"][0]["shape"] == [5, 6]
    for same in (pickle.loads(pickle.dumps(report)), copy.deepcopy(report)):
        assert same.left_out == report.left_out


def test_nothing_is_left_out_of_a_mapping() -> None:
    report = lampfast.report({"a": torch.randn(2, 2), "b": torch.randn(3)})
    assert report.left_out == ()
    assert report.coverage == 1
    assert "left out" not in str(report)
    assert Report(()).coverage == 1
    assert (
        Report([LayerReport("a", (2,), 2, 1, None)], [LeftOut("b", (6,), 6, "x")]).coverage == 0.25
    )


def test_a_tied_embedding_is_a_layer_and_not_left_out() -> None:
    model = nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 5))
    model[1].weight = model[0].weight
    assert _reasons(model) == {}


def test_what_patterns_leave_out_is_told() -> None:
    model = nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 5), nn.Linear(5, 5))
    report = lampfast.report(model, exclude="1.weight")
    reasons = {left.name: left.reason for left in report.left_out}
    assert reasons == {"0.weight": "embedding", "1.weight": "left out by include= or exclude="}
    report = lampfast.report(model, include="0.weight")
    assert [left.name for left in report.left_out] == ["1.weight", "2.weight"]


class Block(nn.Module):
    """A mixture whose experts are modules."""

    def __init__(self, **others: nn.Module) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        for name, module in others.items():
            self.add_module(name, module)


class TopKRouter(nn.Linear):
    """A router that is a linear layer by its class."""


class TinyTop1Router(nn.Module):
    """A router that has a bare parameter, and one that it calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 6))
        self.classifier = nn.Linear(6, 2)


class TinyMoEGate(nn.Module):
    """A gate that is known by its class."""

    def __init__(self) -> None:
        super().__init__()
        self.wg = nn.Linear(6, 2)


EXPERTS = {"experts.0.weight", "experts.1.weight"}
ROUTERS: dict[str, tuple[nn.Module, set[str]]] = {
    "gate": (nn.Linear(6, 2), {"gate.weight"}),
    "router": (nn.Linear(6, 2), {"router.weight"}),
    "wg": (nn.Linear(6, 2), {"wg.weight"}),
    "shared_expert_gate": (nn.Linear(6, 1), {"shared_expert_gate.weight"}),
    "modality_router": (nn.Linear(6, 2), {"modality_router.weight"}),
    "choice": (TopKRouter(6, 2), {"choice.weight"}),
    "top": (TinyTop1Router(), {"top.weight", "top.classifier.weight"}),
    "picks": (TinyMoEGate(), {"picks.wg.weight"}),
}


@pytest.mark.parametrize("name", ROUTERS)
def test_what_chooses_experts_is_no_layer(name: str) -> None:
    module, weights = ROUTERS[name]
    model = Block(**{name: module})
    assert set(named(model)) == EXPERTS
    assert _reasons(model) == dict.fromkeys(weights, "router")
    assert set(named(model, include="*.weight")) == EXPERTS | weights


def test_what_only_has_the_name_of_a_gate_is_a_layer() -> None:
    class ForgetGate(nn.Linear):
        pass

    mlp = nn.ModuleDict(
        {"gate": nn.Linear(6, 6), "gate_proj": nn.Linear(6, 6), "forget": ForgetGate(6, 6)}
    )
    assert set(named(mlp)) == {"gate.weight", "gate_proj.weight", "forget.weight"}
    assert {*named(Block(gate_proj=nn.Linear(6, 6)))} == {*EXPERTS, "gate_proj.weight"}
    routed = nn.ModuleDict({"router": nn.ModuleDict({"experts": nn.Linear(6, 6)})})
    assert list(named(routed)) == ["router.experts.weight"]


class Tuned(nn.Module):
    """What PEFT puts in the place of a linear layer."""

    adapter_layer_names = ("lora_A", "lora_E")
    other_param_names = ("scaling",)

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(6, 6)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(6, 2)})
        self.lora_E = nn.Parameter(torch.randn(2, 6))


def test_adapters_are_no_layers() -> None:
    model = nn.ModuleDict({"q": Tuned()})
    assert list(named(model)) == ["q.base_layer.weight"]
    assert _reasons(model) == {"q.lora_E": "adapter", "q.lora_A.default.weight": "adapter"}


def test_a_frozen_base_is_pruned_while_its_adapters_train() -> None:
    tuned = Tuned()
    model, lora = nn.ModuleDict({"q": tuned}), tuned.lora_A["default"]
    tuned.base_layer.requires_grad_(False)
    adapters = [*lora.parameters(), tuned.lora_E]
    before = [adapter.detach().clone() for adapter in adapters]
    optimizer = torch.optim.SGD(adapters, lr=0.1)
    with lampfast.Pruner(model, optimizer, lampfast.schedules.linear(0.75, 3)) as pruner:
        for _ in range(3):
            x = torch.randn(4, 6)
            (tuned.base_layer(x) + lora(x) @ tuned.lora_E).square().sum().backward()
            optimizer.step()
            pruner.step()
    assert lampfast.report(model).sparsity == 0.75
    for adapter, start in zip(adapters, before, strict=True):
        assert not torch.equal(adapter, start)


def _adapted(adapter: str = "LoraConfig") -> nn.Module:
    """A model to which PEFT has added adapters, and a head that is trained whole."""
    peft = pytest.importorskip("peft")
    plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4))
    options: dict[str, Any] = {"target_modules": ["0", "2"], "modules_to_save": ["3"]}
    if adapter == "IA3Config":
        options["feedforward_modules"] = []
    if adapter == "DoRA":
        config = peft.LoraConfig(use_dora=True, **options)
    else:
        config = getattr(peft, adapter)(**options)
    return peft.get_peft_model(plain, config)  # type: ignore[no-any-return]


BASE = [f"base_model.model.{i}.base_layer.weight" for i in (0, 2)]


@pytest.mark.parametrize("adapter", ["LoraConfig", "DoRA", "IA3Config", "LoKrConfig"])
def test_adapters_of_peft(adapter: str) -> None:
    model = _adapted(adapter)
    assert list(named(model)) == BASE
    assert set(_reasons(model).values()) == {"adapter"}
    for name in ("original_module", "modules_to_save.default"):
        assert f"base_model.model.3.{name}.weight" in _reasons(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lampfast.prune(model, 0.5).numel == 128


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([it for it in model.parameters() if it.requires_grad], lr=0.1)


def _train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.randn(5, 8)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def _values(model: nn.Module, part: str) -> dict[str, torch.Tensor]:
    return {name: it.clone() for name, it in model.state_dict().items() if part in name}


@pytest.mark.parametrize("scheduled", [False, True])
def test_adapters_train_on_a_base_that_is_pruned(scheduled: bool) -> None:
    model = _adapted()
    optimizer = _optimizer(model)
    before, b = _values(model, "base_layer.weight"), _values(model, "lora_B")
    assert len(b) == 2
    assert not any(it.any() for it in b.values())
    if scheduled:
        schedule = lampfast.schedules.linear(0.75, 3)
        with lampfast.Pruner(model, optimizer, schedule) as pruner:
            for _ in range(3):
                _train(model, optimizer)
                pruner.step()
    else:
        lampfast.prune(model, 0.75)
        with lampfast.keep_zeros(model, optimizer):
            for _ in range(3):
                _train(model, optimizer)
    assert lampfast.report(model).sparsity == 0.75
    assert all(it.any() for it in _values(model, "lora_B").values())
    for name, now in _values(model, "base_layer.weight").items():
        assert torch.equal(now, torch.where(now != 0, before[name], 0))


def test_what_merging_fills_is_pruned_again_by_the_masks_of_the_base() -> None:
    model = _adapted()
    optimizer = _optimizer(model)
    lampfast.prune(model, 0.75)
    masks = {name: it != 0 for name, it in _values(model, "base_layer.weight").items()}
    _train(model, optimizer)
    base = model.base_model
    base.merge_adapter()  # type: ignore[operator,union-attr]
    assert lampfast.report(model).sparsity < 0.5
    assert lampfast.apply(model, masks).sparsity == 0.75
    base.unmerge_adapter()  # type: ignore[operator,union-attr]

    merged = model.merge_and_unload()  # type: ignore[operator]
    renamed = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): mask
        for name, mask in masks.items()
    }
    assert list(renamed) == ["0.weight", "2.weight"]
    assert list(named(merged)) == ["0.weight", "2.weight", "3.weight"]
    report = lampfast.apply(merged, renamed, exclude="3.weight")
    assert report.sparsity == 0.75
    for name, mask in renamed.items():
        assert torch.equal(merged.get_parameter(name) != 0, mask)


class Params4bit(nn.Parameter):
    """Codes as bitsandbytes packs them, two in a byte, in one column."""


class Int8Params(nn.Parameter):
    """Codes as bitsandbytes holds them; they are floats until the model is on a GPU."""


class _Codes(torch.Tensor):
    """A tensor that says it is a float matrix, and is none, as torchao's are."""

    @staticmethod
    def __new__(cls, codes: torch.Tensor) -> "_Codes":
        """A tensor without memory of its own."""
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes: torch.Tensor) -> None:
        self.codes = codes

    def __repr__(self) -> str:  # type: ignore[override]
        return "_Codes()"


def _only_detaches(function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    if function is torch.ops.aten.detach.default:
        return _Codes(args[0].codes)
    raise NotImplementedError(f"{function} of codes")


_Codes.__module__ = "torchao.dtypes.affine_quantized_tensor"
_Codes.__torch_dispatch__ = staticmethod(_only_detaches)  # type: ignore[assignment]


def _quantised(kind: str) -> tuple[nn.Module, LeftOut]:
    """A model of a quantised layer and a plain one, and how the former is told."""
    linear, shape, name = nn.Linear(4, 4), (4, 4), "0.weight"
    model = nn.Sequential(linear, nn.Linear(4, 3))
    codes = torch.ones(4, 4, dtype=torch.int8)
    if kind == "int8":
        linear.weight = nn.Parameter(codes, requires_grad=False)
    elif kind == "bitsandbytes 8 bit":
        linear.weight = Int8Params(torch.randn(4, 4))
    elif kind == "bitsandbytes 4 bit":
        packed = Params4bit(torch.ones(8, 1, dtype=torch.uint8), requires_grad=False)
        packed.quant_state = SimpleNamespace(shape=torch.Size(shape))  # type: ignore[attr-defined]
        linear.weight = packed
    elif kind == "torchao":
        linear.weight = nn.Parameter(_Codes(codes))
    elif kind == "compressed":
        del linear.weight
        column = nn.Parameter(torch.ones(4, 1, dtype=torch.int32), requires_grad=False)
        linear.register_parameter("weight_packed", column)
        shape, name = (4, 1), "0.weight_packed"
    elif kind == "GPTQ":
        bare = nn.Module()
        bare.register_buffer("qweight", torch.ones(1, 4, dtype=torch.int32))
        model, shape, name = nn.Sequential(bare, model[1]), (1, 4), "0.qweight"
    else:
        model = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
            model, {"0"}
        )
    return model, LeftOut(name, shape, prod(shape), "quantised")


QUANTISED = [
    "int8",
    "bitsandbytes 8 bit",
    "bitsandbytes 4 bit",
    "torchao",
    "GPTQ",
    "compressed",
    "dynamic",
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_weights_are_left_out_among_plain_ones(kind: str) -> None:
    model, expected = _quantised(kind)
    assert list(named(model)) == ["1.weight"]
    assert lampfast.report(model).left_out == (expected,)
    with (
        pytest.warns(UserWarning, match=r"no layers.*weight' \(quantised\)")
        if (expected.numel > 12)
        else nullcontext()
    ):
        assert lampfast.prune(model, 0.5).numel == 12


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", QUANTISED)
def test_a_model_of_quantised_weights_alone_says_so(kind: str) -> None:
    model = nn.Sequential(next(_quantised(kind)[0].children()))
    with refused(ValueError, "the quantised '0.", "before it is quantised", keeps=[]):
        lampfast.prune(model, 0.5)


def test_quantised_weights_are_refused_by_name() -> None:
    model, _ = _quantised("int8")
    with refused(TypeError, "'0.weight' has dtype torch.int8", keeps=model.parameters()):
        lampfast.prune(model, 0.5, include="0.weight")


def test_a_mapping_of_matrices_and_vectors_is_warned_of() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    words = (
        r"3 vectors, as biases and norms are, are pruned with the 1 matrices: '0.bias', '1.weight'"
        r", '1.bias'; .*exclude=.*include=.*module"
    )
    with pytest.warns(UserWarning, match=words) as caught:
        lampfast.prune(model.state_dict(), 0.5)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lampfast.prune(model.state_dict(), 0.6, exclude=["*.bias", "1.*"])
        lampfast.prune({"a": torch.randn(4), "b": torch.randn(3)}, 0.5)
        lampfast.prune({"a": torch.randn(4, 2), "b": torch.randn(3, 2)}, 0.5)
        lampfast.prune([torch.randn(4, 2), torch.randn(3)], 0.5)


def test_a_model_that_is_mostly_left_out_warns_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), MyLinear(), MyLinear())
    words = (
        r"Sequential has 36 weights in matrices that are no layers and stay as they are, beside 16"
        r".*'1.weight' \(custom class MyLinear\), '2.weight'.*include=.*stacked="
    )
    with pytest.warns(UserWarning, match=words) as caught:
        lampfast.prune(model, 0.5)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lampfast.prune(model, 0.6)
        lampfast.prune(nn.Sequential(nn.Linear(4, 4), MyLinear(), MyLinear()), 0.5, exclude="2.*")
        lampfast.prune(nn.Sequential(nn.Linear(9, 9), MyLinear()), 0.5)
        lampfast.prune(nn.Sequential(nn.Embedding(99, 9), nn.Linear(9, 9)), 0.5)


def test_a_model_that_leaves_out_both_kinds_warns_of_both() -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    model = nn.Sequential(nn.Linear(4, 4), normed, MyLinear(), MyLinear())
    with pytest.warns(UserWarning, match="computed|no layers") as caught:
        lampfast.prune(model, 0.5)
    computed, most = (str(warning.message) for warning in caught)
    assert "layer '1.weight' is computed from other parameters" in computed
    assert "Sequential has 36 weights in matrices that are no layers" in most
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lampfast.prune(model, 0.6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["script", "graph", "list", "dict", "custom"])
def test_a_module_without_layers_says_what_it_has(kind: str) -> None:
    matrix = nn.Parameter(torch.randn(3, 6))
    plain = nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 6))
    models: dict[str, tuple[Callable[[], Any], str, str, int]] = {
        "script": (lambda: torch.jit.script(plain), "0.weight", "*.weight", 36),
        "graph": (_graph, "0.weight", "*.weight", 36),
        "list": (lambda: nn.ParameterList([matrix, matrix.clone()]), "0", "*", 36),
        "dict": (lambda: nn.ParameterDict({"a": matrix}), "a", "a", 18),
        "custom": (lambda: nn.Sequential(MyLinear(), nn.LayerNorm(6)), "0.weight", "0.weight", 18),
    }
    make, name, pattern, numel = models[kind]
    model = make()
    words = (type(model).__name__, f"{name!r}", f"include={pattern!r}")
    with refused(ValueError, *words, keeps=model.parameters()):
        lampfast.prune(model, 0.5)
    assert lampfast.prune(model, 0.5, include=pattern).numel == numel


def _graph() -> nn.Module:
    """A GraphModule whose parameters belong to modules of no class, as exported ones do."""
    root, graph = nn.Module(), torch.fx.Graph()
    x = graph.placeholder("x")
    for i, (inputs, outputs) in enumerate([(6, 3), (3, 6)]):
        root.add_module(str(i), nn.Module())
        root.get_submodule(str(i)).weight = nn.Parameter(torch.randn(outputs, inputs))
        x = graph.call_function(nn.functional.linear, (x, graph.get_attr(f"{i}.weight")))
    graph.output(x)
    return torch.fx.GraphModule(root, graph)
