"""Rewinding: zeros of layers stay, everything else is as it was saved; or nothing changes."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusal import refused
from torch import nn
from torch.optim import AdamW

import lampfast
from lampfast._engine import protection

State = dict[str, Any]


class Network(nn.Module):
    """A convolution, normalisation, attention, and a decoder tied to an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.conv = nn.Conv2d(2, 4, 3)
        self.conv.weight.data = self.conv.weight.data.contiguous(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(4)
        self.attention = nn.MultiheadAttention(6, 2)
        self.decoder = nn.Linear(6, 7)
        self.decoder.weight = self.embedding.weight
        self.register_buffer("scale", torch.ones(()))
        self.scratch: torch.Tensor
        self.register_buffer("scratch", torch.ones(2), persistent=False)


LAYERS = ["conv.weight", "attention.in_proj_weight", "attention.out_proj.weight", "decoder.weight"]


def network(seed: int = 0, dtype: torch.dtype = torch.float32) -> Network:
    """A network whose every value depends on the seed."""
    torch.manual_seed(seed)
    model = Network().to(dtype)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape))
        else:
            value.fill_(seed)
    return model


def expected(model: nn.Module, saved: State, layers: list[str]) -> State:
    """What a rewound model holds, by the definition."""
    result = {}
    for name, now in model.state_dict().items():
        value = saved[name].to(now.dtype)
        if name in layers:
            value = torch.where(now == 0, now, value)
        result[name] = value
    return result


def assert_holds(model: nn.Module, values: State) -> None:
    state = model.state_dict()
    assert state.keys() == values.keys()
    for name, value in values.items():
        assert state[name].dtype == value.dtype
        assert torch.equal(state[name], value), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("saved_dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_zeros_stay_and_the_rest_is_as_saved(dtype: torch.dtype, saved_dtype: torch.dtype) -> None:
    saved = copy.deepcopy(network(1, saved_dtype).state_dict())
    model = network(2, dtype)
    lampfast.prune(model, 0.7)
    with torch.no_grad():
        model.conv.weight[0, 0, 0, :2] = torch.tensor([-0.0, 2.0**-149]).to(dtype)
    model.decoder.weight.grad = torch.ones_like(model.decoder.weight)
    zeros = {name: model.get_parameter(name) == 0 for name in LAYERS}
    target = expected(model, saved, [*LAYERS, "embedding.weight"])
    addresses = {name: value.data_ptr() for name, value in model.state_dict().items()}
    strides = {name: value.stride() for name, value in model.state_dict().items()}
    versions = {name: value._version for name, value in model.named_parameters()}
    model.scratch.fill_(3.0)

    report = lampfast.rewind(model, saved)

    assert_holds(model, target)
    assert report == lampfast.report(model)
    for name, zero in zeros.items():
        assert not model.get_parameter(name)[zero].any()
        assert model.get_parameter(name)[~zero].all()
    assert model.decoder.weight is model.embedding.weight
    assert model.scratch.tolist() == [3.0, 3.0], "no part of the state"
    assert model.norm.num_batches_tracked == 1
    for name, value in model.state_dict().items():
        assert (value.data_ptr(), value.stride()) == (addresses[name], strides[name])
    for name, parameter in model.named_parameters():
        assert parameter.is_leaf
        assert parameter.requires_grad
        assert parameter.grad_fn is None
        assert parameter._version > versions[name]
    assert torch.equal(model.decoder.weight.grad, torch.ones(7, 6, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8(dtype: torch.dtype) -> None:
    model = nn.Linear(4, 3, bias=False)
    saved = {"weight": torch.arange(1.0, 13.0).view(3, 4)}
    model.weight = nn.Parameter(torch.ones(3, 4).to(dtype), requires_grad=False)
    lampfast.prune(model, 5)
    lampfast.rewind(model, saved)
    assert model.weight.float().tolist() == [
        [0.0] * 4,
        [0.0, *saved["weight"].to(dtype).float()[1, 1:].tolist()],
        saved["weight"].to(dtype).float()[2].tolist(),
    ]


def test_subnormal_weights_remain_on_a_processor_that_flushes_them() -> None:
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[2.0**-149, 0.0]])
    try:
        torch.set_flush_denormal(True)
        lampfast.rewind(model, {"weight": torch.tensor([[3.0, 4.0]])})
    finally:
        torch.set_flush_denormal(False)
    assert model.weight.tolist() == [[3.0, 0.0]]


def test_weights_that_are_not_contiguous() -> None:
    model = nn.Linear(4, 3, bias=False)
    base = torch.randn(4, 8)
    model.weight.data = base.t()[::3]
    lampfast.prune(model, 0.5)
    saved = torch.randn(4, 6).t()[::2]
    target = torch.where(model.weight.detach() == 0, 0.0, saved)
    around = base.t()[1::3].clone()
    lampfast.rewind(model, {"weight": saved})
    assert torch.equal(model.weight.detach(), target)
    assert torch.equal(base.t()[1::3], around)
    assert model.weight.data_ptr() == base.data_ptr()


def test_what_is_left_as_it_is() -> None:
    saved = copy.deepcopy(network(1).state_dict())
    model = network(2)
    lampfast.prune(model, 0.5)
    target = expected(model, saved, [*LAYERS, "embedding.weight"])
    now = copy.deepcopy(model.state_dict())
    kept = [name for name in target if name.startswith("norm.")]
    # Its other name is left with it; and what is left need not have been saved.
    kept += ["embedding.weight", "decoder.weight", "scale"]
    del saved["norm.running_var"], saved["scale"]
    lampfast.rewind(model, saved, leave=["norm.*", "embedding.*", "scale"])
    assert_holds(model, {**target, **{name: now[name] for name in kept}})


def test_layers_are_chosen_as_in_prune() -> None:
    """What is no layer is put back whole."""
    saved = copy.deepcopy(network(1).state_dict())
    model = network(2)
    lampfast.prune(model, 0.5, include=["*weight", "*bias"])
    twins = [copy.deepcopy(model) for _ in range(2)]
    report = lampfast.rewind(twins[0], saved, exclude="conv.*")
    assert_holds(twins[0], expected(model, saved, [*LAYERS[1:], "embedding.weight"]))
    assert [layer.name for layer in report.layers] == LAYERS[1:]
    lampfast.rewind(twins[1], saved, include=["conv.*", "norm.weight"])
    assert_holds(twins[1], expected(model, saved, ["conv.weight", "conv.bias", "norm.weight"]))


def test_rounds_of_training_pruning_and_rewinding() -> None:
    """Kept zeros stay through it, and remain those of the last pruning."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))
    saved = copy.deepcopy(model.state_dict())
    optimizer = AdamW(model.parameters(), 0.01)
    pruner = lampfast.Pruner(model, optimizer, lampfast.schedules.geometric(5, fraction=0.5))
    inputs = torch.randn(16, 6)
    for step in range(1, 21):
        optimizer.zero_grad()
        (model(inputs) - inputs).square().mean().backward()
        optimizer.step()
        pruner.step()
        if step % 5 == 0:
            zeros = {name: model.get_parameter(name) == 0 for name in ("0.weight", "2.weight")}
            assert lampfast.rewind(model, saved).kept == pruner.report.kept
            for name, value in saved.items():
                now = model.get_parameter(name)
                assert torch.equal(now, value.masked_fill(zeros.get(name, now != now), 0.0))
        if step > 5:
            assert all(not model.get_parameter(name)[zero].any() for name, zero in zeros.items())
    assert pruner.report.kept == 96 - 90


def test_a_diverged_model_is_rewound() -> None:
    model = nn.Linear(3, 2)
    saved = copy.deepcopy(model.state_dict())
    lampfast.prune(model, 3)
    target = expected(model, saved, ["weight"])
    model.weight.data[model.weight != 0] = float("nan")
    model.bias.data[0] = float("inf")
    lampfast.rewind(model, saved)
    assert_holds(model, target)


def test_values_that_were_saved_where_a_weight_is_pruned_do_not_matter() -> None:
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[0.0, 2.0]])
    lampfast.rewind(model, {"weight": torch.tensor([[float("nan"), 5.0]])})
    assert model.weight.tolist() == [[0.0, 5.0]]


def test_a_state_that_requires_gradients_leaves_no_trace() -> None:
    model = nn.Linear(3, 2)
    saved = {name: value.clone().requires_grad_() for name, value in model.state_dict().items()}
    lampfast.rewind(model, saved)
    model(torch.ones(3)).sum().backward()
    assert all(value.grad is None for value in saved.values())


def test_a_change_under_autograd_is_caught() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    saved = copy.deepcopy(model.state_dict())
    loss = model(torch.ones(3)).sum()
    lampfast.rewind(model, saved)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_further_state_goes_through_its_module() -> None:
    class Counting(nn.Linear):
        count = 0

        def get_extra_state(self) -> dict[str, int]:
            return {"count": self.count}

        def set_extra_state(self, state: dict[str, int]) -> None:
            self.count = state["count"]

    model = Counting(2, 2)
    model.count = 5
    saved = copy.deepcopy(model.state_dict())
    model.count = 9
    lampfast.rewind(model, saved, leave="_extra_state")
    assert model.count == 9
    lampfast.rewind(model, saved)
    assert model.count == 5


def _without(name: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def _with(name: str, value: object) -> Callable[[State], State]:
    return lambda state: {**state, name: value}


def _nan(state: State) -> State:
    state["conv.weight"][3] = float("nan")
    return state


@pytest.mark.parametrize(
    ("change", "arguments", "error", "words"),
    [
        (_without("norm.bias"), {}, ValueError, ("'norm.bias' is missing",)),
        (_with("head.bias", torch.ones(1)), {}, ValueError, ("'head.bias' is unexpected",)),
        (
            lambda state: {f"module.{name}": value for name, value in state.items()},
            {},
            ValueError,
            ("'embedding.weight' is missing", "more", "wrapped module"),
        ),
        (
            _with("conv.weight", torch.ones(4, 2, 3)),
            {},
            ValueError,
            ("'conv.weight' has shape (4, 2, 3), not (4, 2, 3, 3)",),
        ),
        (_with("scale", torch.ones(1)), {}, ValueError, ("'scale' has shape (1,), not ()",)),
        (
            _with("norm.bias", torch.ones(4, dtype=torch.complex64)),
            {},
            TypeError,
            ("'norm.bias'", "complex64", "real"),
        ),
        (_with("norm.bias", [0.0] * 4), {}, TypeError, ("'norm.bias'", "is a list")),
        (
            _with("norm.bias", torch.ones(4, device="meta")),
            {},
            TypeError,
            ("'norm.bias'", "meta tensor"),
        ),
        (
            _with("norm.bias", torch.ones(4).to_sparse()),
            {},
            TypeError,
            ("'norm.bias'", "sparse", ".to_dense()"),
        ),
        (_nan, {}, ValueError, ("'conv.weight'", "NaN")),
        (
            _with("conv.weight", torch.full((4, 2, 3, 3), 1e300, dtype=torch.float64)),
            {},
            ValueError,
            ("'conv.weight'", "infinite in torch.float32"),
        ),
        (lambda state: [*state.items()], {}, TypeError, ("saved_state is a list",)),
        (dict, {"leave": "batchnorm*"}, ValueError, ("leave='batchnorm*' matches no name",)),
        (dict, {"leave": 3}, TypeError, ("leave is a int",)),
        (dict, {"include": "fc"}, ValueError, ("include='fc' matches no name",)),
    ],
)
def test_what_does_not_fit_changes_nothing(
    change: Callable[[State], Any],
    arguments: dict[str, Any],
    error: type[Exception],
    words: tuple[str, ...],
) -> None:
    model = network(2)
    lampfast.prune(model, 0.5)
    saved = change(copy.deepcopy(network(1).state_dict()))
    with refused(error, *words, keeps=model.state_dict().values()):
        lampfast.rewind(model, saved, **arguments)


@pytest.mark.parametrize("own", [nn.Module.state_dict, lambda m: OrderedDict(m.named_parameters())])
def test_a_state_that_was_not_copied(own: Callable[[nn.Module], State]) -> None:
    """It follows training, so there is nothing to go back to."""
    model = nn.Linear(3, 2)
    saved = {name: value.cpu() for name, value in own(model).items()}
    with refused(ValueError, "the model's own", "deepcopy", keeps=model.state_dict().values()):
        lampfast.rewind(model, saved)


def test_models_that_cannot_be_rewound() -> None:
    with pytest.raises(TypeError, match=r"model is a dict; pass a torch\.nn\.Module"):
        lampfast.rewind({"a": torch.ones(2)}, {"a": torch.ones(2)})  # type: ignore[arg-type]

    class Elsewhere(nn.Linear):
        def _save_to_state_dict(self, destination: State, prefix: str, keep_vars: bool) -> None:
            destination[prefix + "half"] = self.weight.half()

    model = nn.Sequential(Elsewhere(3, 2))
    saved = {"0.half": torch.ones(2, 3)}
    with refused(ValueError, "'0.weight' is not in", keeps=model.parameters()):
        lampfast.rewind(model, saved)


def head(model: nn.Module) -> torch.Tensor:
    return model.get_parameter("1.weight")


def saved_with_a_zero_head() -> tuple[nn.Sequential, State]:
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
    nn.init.zeros_(head(model))
    saved = copy.deepcopy(model.state_dict())
    nn.init.normal_(head(model))  # training
    return model, saved


def trained_for_a_step(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """The head after a step that moves every weight."""
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return head(model)


@pytest.mark.parametrize("made", ["before", "after"])
def test_a_head_that_was_saved_as_zero_is_trained_where_it_remains(made: str) -> None:
    model, saved = saved_with_a_zero_head()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    lampfast.prune(model, 0.5)
    remains = head(model) != 0
    assert 0 < remains.sum() < remains.numel()
    if made == "before":
        kept = lampfast.keep_zeros(model, optimizer)
        report = lampfast.rewind(model, saved)
    else:
        with pytest.warns(
            UserWarning, match=r"layer '1\.weight' is zero throughout in saved_state"
        ):
            report = lampfast.rewind(model, saved)
        kept = lampfast.keep_zeros(model, optimizer)
    assert report.layers[1].kept == 0
    assert torch.equal(trained_for_a_step(model, optimizer) != 0, remains)
    assert kept


@pytest.mark.filterwarnings("error")
def test_a_warning_that_is_made_an_error_changes_nothing() -> None:
    model, saved = saved_with_a_zero_head()
    lampfast.prune(model, 0.5)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserWarning):
        lampfast.rewind(model, saved)
    assert all(torch.equal(now, before[name]) for name, now in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*not writable:UserWarning")
@pytest.mark.skipif(protection._asker() is None, reason="the system does not tell")
def test_read_only_memory_that_is_no_layer(tmp_path: Path) -> None:
    np.ones(2, np.float32).tofile(tmp_path / "bias")
    model = nn.Linear(3, 2)
    saved = copy.deepcopy(model.state_dict())
    model.bias = nn.Parameter(torch.from_numpy(np.memmap(tmp_path / "bias", np.float32, "r")))
    nn.init.ones_(model.weight)
    with refused(ValueError, "'bias'", "read-only memory", keeps=model.parameters()):
        lampfast.rewind(model, saved)
    lampfast.rewind(model, saved, leave="bias")
    assert torch.equal(model.weight, saved["weight"])


def test_a_pruner_prunes_a_head_that_was_rewound_to_zero_as_if_it_were_not() -> None:
    model, saved = saved_with_a_zero_head()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = lampfast.Pruner(model, optimizer, lampfast.schedules.linear(0.9, 9))
    for _ in range(4):
        pruner.step()
    remains = head(model) != 0
    assert 0 < remains.sum() < remains.numel()
    lampfast.rewind(model, saved)
    for _ in range(3):
        pruner.step()  # the head is zero, so it is not pruned further
    assert pruner.history[-1][0] == 7
    assert torch.equal(trained_for_a_step(model, optimizer) != 0, remains)
