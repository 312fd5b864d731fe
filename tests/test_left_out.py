"""What is no layer of a model by default, and how that is told."""

import copy
import pickle
import warnings

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


@pytest.mark.parametrize("adapter", ["LoraConfig", "DoRA", "IA3Config", "LoKrConfig"])
def test_adapters_of_peft(adapter: str) -> None:
    peft = pytest.importorskip("peft")
    plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4))
    options = {"target_modules": ["0", "2"], "modules_to_save": ["3"]}
    if adapter == "IA3Config":
        options["feedforward_modules"] = []
    if adapter == "DoRA":
        config = peft.LoraConfig(use_dora=True, **options)
    else:
        config = getattr(peft, adapter)(**options)
    model = peft.get_peft_model(plain, config)
    prefix = "base_model.model"
    assert list(named(model)) == [
        *(f"{prefix}.{i}.base_layer.weight" for i in (0, 2)),
        f"{prefix}.3.original_module.weight",
    ]
    assert set(_reasons(model).values()) == {"adapter"}
    assert f"{prefix}.3.modules_to_save.default.weight" in _reasons(model)


def test_quantised_weights_are_left_out_among_plain_ones() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    codes = torch.ones(4, 4, dtype=torch.int8)
    model[0].weight = nn.Parameter(codes, requires_grad=False)
    assert list(named(model)) == ["1.weight"]
    assert _reasons(model) == {"0.weight": "quantised"}
    with refused(TypeError, "'0.weight' has dtype torch.int8", keeps=model.parameters()):
        lampfast.prune(model, 0.5, include="0.weight")


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
@pytest.mark.parametrize("kind", ["script", "list", "dict", "custom"])
def test_a_module_without_layers_says_what_it_has(kind: str) -> None:
    matrix = nn.Parameter(torch.randn(3, 6))
    model: nn.Module = {
        "script": lambda: torch.jit.script(  # type: ignore[no-untyped-call]
            nn.Sequential(nn.Linear(6, 3))
        ),
        "list": lambda: nn.ParameterList([matrix]),
        "dict": lambda: nn.ParameterDict({"a": matrix}),
        "custom": lambda: nn.Sequential(MyLinear()),
    }[kind]()
    name = {"script": "0.weight", "list": "0", "dict": "a", "custom": "0.weight"}[kind]
    words = (type(model).__name__, f"{name!r}", f"include={name!r}")
    with refused(ValueError, *words, keeps=model.parameters()):
        lampfast.prune(model, 0.5)
    assert lampfast.prune(model, 0.5, include=name).numel == 18
