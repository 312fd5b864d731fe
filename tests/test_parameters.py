"""Which parameters of a model are its layers, under which names; what patterns and ties do."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from refusal import refused
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import lampfast
import lampfast.torch_prune
from lampfast.parameters import named

PRUNABLE: dict[str, tuple[nn.Module, list[str]]] = {
    "Linear": (nn.Linear(2, 3), ["weight"]),
    "Conv1d": (nn.Conv1d(2, 3, 2), ["weight"]),
    "Conv2d": (nn.Conv2d(2, 4, 2, groups=2), ["weight"]),
    "Conv3d": (nn.Conv3d(2, 3, 2), ["weight"]),
    "ConvTranspose1d": (nn.ConvTranspose1d(2, 3, 2), ["weight"]),
    "ConvTranspose2d": (nn.ConvTranspose2d(2, 3, 2), ["weight"]),
    "ConvTranspose3d": (nn.ConvTranspose3d(2, 3, 2), ["weight"]),
    "Bilinear": (nn.Bilinear(2, 3, 2), ["weight"]),
    "attention": (nn.MultiheadAttention(4, 2), ["in_proj_weight", "out_proj.weight"]),
    "attention, separate": (
        nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True),
        ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"],
    ),
    "RNN": (nn.RNN(2, 3), ["weight_ih_l0", "weight_hh_l0"]),
    "GRU": (
        nn.GRU(2, 3, num_layers=2),
        ["weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1"],
    ),
    "LSTM": (
        nn.LSTM(2, 3, bidirectional=True, proj_size=2),
        [
            *("weight_ih_l0", "weight_hh_l0", "weight_hr_l0"),
            *("weight_ih_l0_reverse", "weight_hh_l0_reverse", "weight_hr_l0_reverse"),
        ],
    ),
    "RNNCell": (nn.RNNCell(2, 3), ["weight_ih", "weight_hh"]),
    "LSTMCell": (nn.LSTMCell(2, 3), ["weight_ih", "weight_hh"]),
    "GRUCell": (nn.GRUCell(2, 3, bias=False), ["weight_ih", "weight_hh"]),
}
OTHERS = [
    *(nn.Embedding(4, 3), nn.EmbeddingBag(4, 3), nn.PReLU(2), nn.ReLU(), nn.ParameterList()),
    *(nn.BatchNorm2d(2), nn.LayerNorm(3), nn.GroupNorm(1, 2), nn.InstanceNorm1d(2, affine=True)),
    nn.ParameterDict({"weight": nn.Parameter(torch.ones(2, 2))}),
]


class _Net(nn.Module):
    """A little of everything: the decoder is tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, 2))
        self.embedding = nn.Embedding(5, 4)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
        self.decoder = nn.Linear(4, 5)
        self.decoder.weight = self.embedding.weight


@pytest.mark.parametrize(("module", "names"), PRUNABLE.values(), ids=PRUNABLE)
def test_layers_of_a_module(module: nn.Module, names: list[str]) -> None:
    assert list(named(module)) == names
    layers = named(nn.Sequential(nn.ReLU(), module))
    assert list(layers) == [f"1.{name}" for name in names]
    for name, layer in layers.items():
        assert layer is module.get_parameter(name.removeprefix("1."))
    every = [f"1.{name}" for name, _ in module.named_parameters()]
    assert list(layers) == [name for name in every if name in layers], "not in the model's order"


def test_layers_of_subclasses() -> None:
    class Mine(nn.Linear):
        pass

    assert list(named(Mine(2, 3))) == ["weight"]


@pytest.mark.parametrize("module", OTHERS, ids=lambda module: type(module).__name__)
def test_modules_that_have_no_layer(module: nn.Module) -> None:
    way_out = "include=" if list(module.parameters()) else "whose weights are parameters"
    words = (type(module).__name__, "no linear, convolution", way_out)
    with refused(ValueError, *words, keeps=module.parameters()):
        lampfast.prune(module, 0.5)


@pytest.mark.parametrize("module", ["transformers.pytorch_utils", "mine"])
def test_conv1d_of_transformers(module: str) -> None:
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 3))
            self.bias = nn.Parameter(torch.ones(3))

    Conv1D.__module__ = module
    names = list(named(nn.Sequential(nn.Linear(2, 2), Conv1D())))
    assert names == (["0.weight"] if module == "mine" else ["0.weight", "1.weight"])


@pytest.mark.parametrize(
    ("include", "exclude", "names"),
    [
        (None, None, ["body.0.weight", "body.2.weight", "decoder.weight"]),
        ("*.bias", None, ["body.0.bias", "body.1.bias", "body.2.bias", "decoder.bias"]),
        ("scale", None, ["scale"]),
        ("embedding.*", None, ["embedding.weight"]),
        (["*.2.*", "scale", "s*"], None, ["scale", "body.2.weight", "body.2.bias"]),
        (("body.?.weight",), "*.1.*", ["body.0.weight", "body.2.weight"]),
        (None, "body.[02].*", ["decoder.weight"]),
        (None, ["*.bias", "decoder*"], ["body.0.weight", "body.2.weight"]),
        (None, "embedding.weight", ["body.0.weight", "body.2.weight"]),  # and so its other name
        (None, [], ["body.0.weight", "body.2.weight", "decoder.weight"]),
    ],
)
def test_patterns(
    include: str | list[str] | None, exclude: str | list[str] | None, names: list[str]
) -> None:
    model = _Net()
    assert list(named(model, include, exclude)) == names
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lampfast.prune(model, 1.0, include=include, exclude=exclude)
    tied = {"embedding.weight", "decoder.weight"}
    touched = {*names, *tied} if tied & {*names} else {*names}
    for name, value in model.state_dict().items():
        assert torch.equal(value, torch.zeros_like(value) if name in touched else before[name])


def test_every_name_of_a_tied_parameter_can_be_chosen_and_it_counts_once() -> None:
    model = _Net()
    report = lampfast.report(model, include=["embedding.weight", "decoder.weight"])
    assert [layer.name for layer in report.layers] == ["embedding.weight"]
    assert list(lampfast.masks(model, 0.5, include="decoder.weight")) == ["decoder.weight"]


def test_patterns_over_mappings_and_sequences() -> None:
    weights = [torch.ones(2), torch.ones(3), torch.ones(4)]
    assert list(named(weights, exclude="1")) == ["0", "2"]
    mapping = OrderedDict(b=weights[0], a=weights[1], c=weights[0])
    assert list(named(mapping)) == ["b", "a", "c"]
    assert list(named(mapping, include=["a", "b"])) == ["b", "a"]
    assert list(named(mapping, exclude="b")) == ["a"]  # c is the same tensor


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_patterns_that_match_nothing(argument: str) -> None:
    model = _Net()
    choice: dict[str, Any]
    keeps = list(model.parameters())
    words = (f"{argument}='body.0.wieght'", "matches no name", "body.0.weight")
    choice = {argument: ["body.2.weight", "body.0.wieght"]}
    with refused(ValueError, *words, keeps=keeps):
        lampfast.prune(model, 0.5, **choice)
    choice = {argument: "BODY*"}
    with refused(ValueError, f"{argument}='BODY*'", "scale", keeps=keeps):
        lampfast.prune(model, 0.5, **choice)
    choice = {argument: "fc"}
    with refused(ValueError, f"{argument}='fc'", "matches no name", keeps=[]):
        lampfast.prune({}, 0.5, **choice)


def test_patterns_that_leave_nothing() -> None:
    model = _Net()
    keeps = list(model.parameters())
    for include, exclude in (("scale", "*"), ([], None), (None, "*.weight")):
        with refused(ValueError, f"include={include!r}", f"exclude={exclude!r}", keeps=keeps):
            lampfast.prune(model, 0.5, include=include, exclude=exclude)


@pytest.mark.parametrize(
    "patterns", [3, [3], lambda name: True, torch.tensor(1.0), torch.ones(2), b"*", iter("*")]
)
def test_patterns_of_another_type(patterns: Any) -> None:
    weight = torch.randn(3)
    with refused(TypeError, "exclude is a ", "glob pattern", keeps=[weight]):
        lampfast.prune([weight], 0.5, exclude=patterns)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (torch.ones(3), ("Tensor", "[tensor]")),
        (torch.ones(3).numpy(), ("ndarray", "[tensor]")),
        (nn.Linear(2, 2).parameters(), ("generator", "list")),
        ("model.pt", ("str", "torch.nn.Module")),
        (None, ("NoneType", "torch.nn.Module")),
        (b"model", ("bytes", "torch.nn.Module")),
        (range(3), ("range", "list of tensors")),
        ({"a": 1}, ("layer 'a' is a int", "torch tensor")),
        ({3: torch.ones(3)}, ("key 3", "str")),
        ([(nn.Linear(2, 2), "weight", 3)], ("layer '0' is a tuple",)),
        ([("weight", nn.Linear(2, 2))], ("layer '0' is a tuple",)),
        ([nn.Linear(2, 2)], ("layer '0' is a Linear",)),
    ],
)
def test_models_of_another_type(model: Any, words: tuple[str, ...]) -> None:
    with refused(TypeError, *words, keeps=[]):
        lampfast.prune(model, 0.5)


@pytest.mark.parametrize("model", [{}, [], ()])
def test_models_without_layers(model: Any) -> None:
    report = lampfast.prune(model, 0.5)
    assert (report.numel, report.kept, report.sparsity, report.layers) == (0, 0, 0.0, ())
    assert lampfast.masks(model, 0) == lampfast.scores(model) == {}
    with refused(ValueError, "sparsity is 1", "0 to 0", keeps=[]):
        lampfast.prune(model, 1)


def test_state_dicts_of_models_with_batch_norm() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    state = model.state_dict()
    words = ("layer '1.num_batches_tracked'", "torch.int64", "include=", "exclude=")
    with refused(TypeError, *words, keeps=state.values()):
        lampfast.prune(state, 0.5)
    report = lampfast.prune(state, 0.5, include="0.weight")
    assert report.kept == 27
    assert torch.count_nonzero(model[0].get_parameter("weight")) == 27


def test_pairs_of_modules_and_names() -> None:
    net = _Net()
    pairs = [(net.body[0], "weight"), (net.body[2], "bias"), (net.embedding, "weight")]
    assert list(named(pairs)) == ["0.weight", "1.bias", "2.weight"]
    assert lampfast.prune(pairs, 1.0).numel == 40
    assert not any(torch.count_nonzero(module.get_parameter(name)) for module, name in pairs)
    words = ("Linear at position 0", "no parameter 'wieght'", "weight, bias")
    with refused(ValueError, *words, keeps=net.parameters()):
        lampfast.prune([(net.decoder, "wieght")], 0.5)
    with refused(ValueError, "no parameter 'bias'", keeps=net.parameters()):
        lampfast.prune([(nn.Linear(2, 2, bias=False), "bias")], 0.5)


class _Double(nn.Module):
    """A parametrisation that counts its calls."""

    calls = 0

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Double the weight."""
        self.calls += 1
        return 2 * weight


def _doubled(module: nn.Module, name: str = "weight") -> nn.Module:
    return parametrize.register_parametrization(module, name, _Double())


_remove_parametrizations = "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')"
VERBS: list[Callable[..., object]] = [lampfast.prune, lampfast.masks, lampfast.report]
COMPUTED: dict[str, tuple[Callable[[nn.Module], nn.Module], str, str]] = {
    "parametrize": (_doubled, _remove_parametrizations, "0.parametrizations.weight.original"),
    "spectral_norm": (
        parametrizations.spectral_norm,
        _remove_parametrizations,
        "0.parametrizations.weight.original",
    ),
    "old spectral_norm": (
        nn.utils.spectral_norm,
        "torch.nn.utils.remove_spectral_norm(module, 'weight')",
        "0.weight_orig",
    ),
    "prune": (
        lambda module: prune.l1_unstructured(module, "weight", 0.25),  # type: ignore[no-untyped-call]
        "torch.nn.utils.prune.remove(module, 'weight')",
        "0.weight_orig",
    ),
    "prune, all layers": (
        lambda module: prune.l1_unstructured(module, "weight", 0.25),  # type: ignore[no-untyped-call]
        "lampfast.torch_prune.to_zeros(model)",
        "0.weight_orig",
    ),
}


@pytest.mark.parametrize(("compute", "remedy", "parameter"), COMPUTED.values(), ids=COMPUTED)
def test_computed_weights(
    compute: Callable[[nn.Module], nn.Module], remedy: str, parameter: str
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(compute(nn.Linear(6, 8)), nn.Linear(8, 4))
    keeps = [*model.parameters(), *model.buffers()]
    words = ("layer '0.weight'", "computed from other parameters", remedy, "exclude=", "include=")
    for alone in (model[0], model[:1]):
        with refused(ValueError, *words[1:], keeps=keeps):
            lampfast.prune(alone, 0.5)
    with refused(ValueError, *words, keeps=keeps):
        lampfast.prune(model, 0.5, include=["0.weight", "1.weight"])
    with pytest.warns(UserWarning, match="computed from other") as caught:
        report = lampfast.prune(model, 0.25)
    assert [layer.name for layer in report.layers] == ["1.weight"]
    assert [left[0::3] for left in report.left_out] == [(parameter, "computed")]
    assert all(word in str(caught[0].message) for word in words)
    assert caught[0].filename == __file__
    lampfast.prune(model, 0.25)  # warns of a model once
    with refused(ValueError, "layer '1.weight'", remedy, keeps=keeps):
        lampfast.prune([(model[1], "weight"), (model[0], "weight")], 0.5)

    assert lampfast.prune(model, 0.25, exclude="0.*").kept == 24
    assert lampfast.prune(model, 0.25, exclude="0.weight").kept == 24
    report = lampfast.prune(model, 0.25, include=[parameter, "1.weight"])
    assert [layer.name for layer in report.layers] == [parameter, "1.weight"]
    kept = torch.count_nonzero(model.get_parameter(parameter))
    model(torch.randn(2, 6)).sum().backward()
    assert torch.count_nonzero(model.get_parameter(parameter)) == kept

    first = model[0]
    exec(remedy, {"torch": torch, "lampfast": lampfast, "model": model, "module": first})
    model(torch.randn(2, 6))
    assert lampfast.prune(model, 0.75).kept == 20
    assert torch.count_nonzero(torch.cat([p.flatten() for p in _weights(model)])) == 20


WEIGHT_NORMS: dict[str, tuple[Callable[[nn.Module], nn.Module], str, str]] = {
    "weight_norm": (
        parametrizations.weight_norm,
        _remove_parametrizations,
        "parametrizations.weight.original1",
    ),
    "old weight_norm": (
        nn.utils.weight_norm,
        "torch.nn.utils.remove_weight_norm(module, 'weight')",
        "weight_v",
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("compute", "remedy", "parameter"), WEIGHT_NORMS.values(), ids=WEIGHT_NORMS
)
def test_weight_norm_divides_by_the_lengths_of_rows(
    compute: Callable[[nn.Module], nn.Module], remedy: str, parameter: str
) -> None:
    model = nn.Sequential(compute(nn.Linear(6, 8)), nn.Linear(8, 4))
    with refused(ValueError, remedy, "exclude=", keeps=model.parameters()) as caught:
        lampfast.prune(model[0], 0.5)
    assert "include=" not in str(caught.value)
    with pytest.warns(UserWarning, match="computed"):
        assert lampfast.prune(model, 0.5).numel == 32
    direction = model[0].get_parameter(parameter)
    owner, _, attribute = parameter.rpartition(".")
    words = ("rows", "0 / 0", "remove_weight_norm", "exclude=")
    for verb in VERBS:
        with refused(ValueError, f"layer '0.{parameter}'", *words, keeps=model.parameters()):
            verb(model, 0.9, include=["0*", "1.weight"])
        pairs = [(model[0].get_submodule(owner), attribute)]
        with refused(ValueError, f"layer '0.{attribute}'", *words, keeps=model.parameters()):
            verb(pairs, 0.9)
    assert lampfast.prune(model, 0.5, include=["0*", "1.weight"], exclude=f"0.{parameter}").kept

    exec(remedy, {"torch": torch, "module": model[0]})
    with torch.no_grad():
        model[0].get_parameter("weight")[0] = 1e-9
    lampfast.prune(model, 0.9)
    assert model(torch.randn(2, 6)).isfinite().all()
    assert direction.isfinite().all()


def test_layers_that_are_not_matrices_are_parts_of_sharded_ones() -> None:
    words = ("sharded", "summon_full_params", "GatheredParameters")
    for flat in (torch.empty(0), torch.randn(7)):
        for module in (nn.Linear(2, 3), nn.Conv2d(2, 3, 3), nn.MultiheadAttention(4, 2)):
            name = "in_proj_weight" if isinstance(module, nn.MultiheadAttention) else "weight"
            module.register_parameter(name, nn.Parameter(flat.clone()))
            model = nn.Sequential(nn.Linear(4, 4), module)
            shape = f"layer '1.{name}' has shape {tuple(flat.shape)}"
            for include in (None, "*weight"):
                with refused(ValueError, shape, *words, keeps=model.parameters()):
                    lampfast.prune(model, 0.5, include=include)
            assert lampfast.prune(model, 0.5, exclude="1.*").numel == 16
    linear = nn.Linear(2, 3)
    linear.weight = nn.Parameter(torch.empty(0))
    with refused(ValueError, "layer '0.weight' has shape (0,)", *words, keeps=[]):
        lampfast.prune([(linear, "weight")], 0.5)
    linear.weight = nn.Parameter(torch.empty(0, 3))  # a matrix, and all of it
    assert lampfast.prune(linear, 0.5).numel == 0


def test_a_name_that_reads_as_a_pattern_means_itself() -> None:
    model = {"layer[0].w": torch.randn(3), "layer0.w": torch.randn(3), "*": torch.randn(3)}
    assert list(named(model, include="layer[0].w")) == ["layer[0].w"]
    assert list(named(model, exclude="layer[0].w")) == ["layer0.w", "*"]
    assert list(named(model, exclude="*")) == ["layer[0].w", "layer0.w"]
    assert list(named(model, include="layer[[]*")) == ["layer[0].w"]


def _weights(model: nn.Module) -> list[torch.Tensor]:
    return [p for name, p in model.named_parameters() if name.endswith("weight")]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_computed_weights_of_recurrent_modules() -> None:
    for compute in (_doubled, parametrizations.weight_norm, nn.utils.weight_norm):
        lstm = compute(nn.LSTM(3, 4, bidirectional=True), "weight_hh_l0_reverse")
        with refused(ValueError, "'weight_hh_l0_reverse'", "exclude=", keeps=lstm.parameters()):
            lampfast.prune(lstm, 0.5, include="weight_hh_l0_reverse")
        with pytest.warns(UserWarning, match="'weight_hh_l0_reverse' is computed"):
            assert len(lampfast.prune(lstm, 0.5).layers) == 3
        assert len(lampfast.prune(lstm, 0.5, exclude="weight_hh_l0_reverse").layers) == 3


def test_looking_at_a_computed_weight_does_not_compute_it() -> None:
    model = _doubled(nn.Linear(2, 2))
    double = model.get_submodule("parametrizations.weight.0")
    assert isinstance(double, _Double)
    double.calls = 0
    with pytest.raises(ValueError, match="computed"):
        lampfast.report(model)
    assert double.calls == 0


def test_other_parametrised_attributes_do_not_matter() -> None:
    assert list(named(_doubled(nn.Linear(2, 2), "bias"))) == ["weight"]


def test_a_weight_that_is_no_parameter() -> None:
    model = nn.Linear(2, 2)
    del model.weight
    model.register_buffer("weight", torch.ones(2, 2))
    words = ("layer 'weight' is not a parameter of its module", "exclude=")
    with refused(ValueError, *words, keeps=model.buffers()):
        lampfast.prune(model, 0.5)
