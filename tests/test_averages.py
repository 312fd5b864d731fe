"""Averages that follow the model's masks: their zeros are the model's at every step."""

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

import lampfast
from lampfast import schedules
from lampfast._training import averages

STEPS = 14
SCHEDULE = schedules.cubic(0.9, 10)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tensors this small are not worth a second one; tests/conftest.py puts it back."""
    torch.set_num_threads(1)


class Net(nn.Module):
    """A convolution and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.hidden = nn.Linear(6 * 9, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any function of all weights."""
        hidden = self.hidden(self.norm(self.conv(x)).tanh().flatten(1))
        return self.out(hidden)  # type: ignore[no-any-return]


class ModelEmaV3(nn.Module):
    """What timm's class of this name does: a copy in `module`, updated from parameters by name."""

    def __init__(self, model: nn.Module, decay: float = 0.9) -> None:
        super().__init__()
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int | None = None) -> None:
        """Average what is floating, copy the rest."""
        ours, theirs = self.module.state_dict(), model.state_dict()
        for name, value in ours.items():
            if value.is_floating_point():
                value.lerp_(theirs[name], 1 - self.decay)
            else:
                value.copy_(theirs[name])


class _Shadow:
    """As diffusers' and torch_ema's: a list of tensors, in the order of the parameters."""

    def __init__(self, model: nn.Module) -> None:
        self.shadow_params = [weight.detach().clone() for weight in model.parameters()]
        self._names = [name for name, _ in model.named_parameters()]

    def named(self) -> dict[str, torch.Tensor]:
        return dict(zip(self._names, self.shadow_params, strict=True))

    def update(self, model: nn.Module) -> None:
        for shadow, weight in zip(self.shadow_params, model.parameters(), strict=True):
            shadow.sub_((shadow - weight.detach()) * 0.1)


def _ema(model: nn.Module) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))  # type: ignore[no-untyped-call]


# Makes an average of a model: what is passed as copies, and what updates it.
AVERAGES: dict[str, Callable[[nn.Module], tuple[Any, Callable[[nn.Module], None]]]] = {
    "EMA": lambda model: (average := _ema(model), average.update_parameters),
    "SWA": lambda model: (average := AveragedModel(model), average.update_parameters),
    "half": lambda model: (
        average := AveragedModel(model, avg_fn=get_ema_avg_fn(0.9)).to(torch.bfloat16),  # type: ignore[no-untyped-call]
        average.update_parameters,
    ),
    "timm": lambda model: (average := ModelEmaV3(model), average.update),
    "shadow": lambda model: ((average := _Shadow(model)).named(), average.update),
}


def make_model() -> Net:
    torch.manual_seed(0)
    return Net()


def _backward(model: nn.Module, step: int) -> None:
    model.zero_grad()
    data = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(step))
    (model(data) - 1).square().mean().backward()


def _layers(model: Any) -> dict[str, Any]:
    """The layers of the model or of a copy, by their names in the model."""
    tensors: dict[str, Any] = model if isinstance(model, dict) else dict(model.named_parameters())
    names = [layer.name for layer in lampfast.report(Net()).layers]
    return {name: tensors.get(name, tensors.get(f"module.{name}")) for name in names}


def _assert_same_zeros(average: Any, model: Any) -> None:
    for (name, weight), other in zip(
        _layers(model).items(), _layers(average).values(), strict=True
    ):
        assert torch.equal(weight == 0, other == 0), name


@pytest.mark.parametrize("when", ["before the pruning", "after it", "inside the step", "at times"])
@pytest.mark.parametrize("name", AVERAGES)
def test_an_average_has_the_zeros_of_the_model_at_every_step(name: str, when: str) -> None:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    average, update = AVERAGES[name](model)
    if when == "inside the step":  # by a hook that sees the weights before their zeros are restored
        optimizer.register_step_post_hook(lambda *_: update(model))
    pruner = lampfast.Pruner(model, optimizer, SCHEDULE, every=2, copies=average)
    for step in range(STEPS):
        _backward(model, step)
        optimizer.step()
        if when == "before the pruning":
            update(model)
        pruner.step()
        if when == "after it" or (when == "at times" and step % 5 == 3):
            update(model)
        _assert_same_zeros(average, model)
    assert lampfast.report(model).sparsity == pytest.approx(0.9, abs=0.001)


def test_an_average_that_is_no_copy_has_other_zeros() -> None:
    """What all of this is for."""
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    average = _ema(model)
    pruner = lampfast.Pruner(model, optimizer, SCHEDULE, every=2)
    for step in range(STEPS):
        _backward(model, step)
        optimizer.step()
        average.update_parameters(model)
        pruner.step()
    assert lampfast.report(average).sparsity < 0.5 < lampfast.report(model).sparsity


def test_the_zeros_come_at_once_and_the_rest_stays() -> None:
    model = make_model()
    average = copy.deepcopy(model)
    lampfast.prune(model, 0.8)
    dense = copy.deepcopy(average.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with lampfast.keep_zeros(model, optimizer, copies=average):
        _assert_same_zeros(average, model)
        lampfast.prune(model, 0.9)
        _assert_same_zeros(average, model)
    for name, weight in average.state_dict().items():
        assert torch.equal(weight[weight != 0], dense[name][weight != 0])
    lampfast.prune(model, 0.95)  # by then it follows no more
    assert lampfast.report(average).sparsity == pytest.approx(0.9, abs=0.001)


def test_several_copies() -> None:
    model = make_model()
    made: list[Any] = [_ema(model), copy.deepcopy(model), ModelEmaV3(model), _Shadow(model).named()]
    lampfast.prune(model, 0.8)
    kept = lampfast.keep_zeros(
        model, torch.optim.SGD(model.parameters(), 0.1), copies=[*made, made[0]]
    )
    for average in made:
        _assert_same_zeros(average, model)
    kept.remove()


def test_what_is_written_to_a_copy_is_there_until_restore() -> None:
    model = make_model()
    average = copy.deepcopy(model)
    state = copy.deepcopy(model.state_dict())
    lampfast.prune(model, 0.8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    kept = lampfast.keep_zeros(model, optimizer, copies=average)
    for restore in (kept.restore, optimizer.step):
        average.load_state_dict(state)
        _backward(model, 0)
        restore()
        _assert_same_zeros(average, model)


def test_weights_that_grow_again_are_free_in_the_copy() -> None:
    model = make_model()
    average = _ema(model)
    lampfast.prune(model, 0.8)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    kept = lampfast.keep_zeros(model, optimizer, copies=average)
    masks = {name: weight != 0 for name, weight in _layers(model).items()}
    masks["out.weight"] = torch.ones_like(masks["out.weight"])
    masks["hidden.weight"][:4] = False
    kept.update(masks)
    _assert_same_zeros(average, model)
    for step in range(3):
        _backward(model, step)
        optimizer.step()
        average.update_parameters(model)
    assert average.module.get_parameter("out.weight").all()
    assert not average.module.get_parameter("hidden.weight")[:4].any()

    with torch.no_grad():
        model.out.weight[0] = 0.0
    kept.update()
    assert not average.module.get_parameter("out.weight")[0].any()


def test_a_layer_that_may_train_from_zero_may_in_the_copy() -> None:
    model = make_model()
    nn.init.zeros_(model.out.weight)
    average = _ema(model)
    lampfast.prune(model, 0.5, exclude="out.*")
    with torch.no_grad():
        average.module.get_parameter("out.weight").fill_(1.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.warns(UserWarning, match="these zeros are not kept"):
        lampfast.keep_zeros(model, optimizer, copies=average)
    assert average.module.get_parameter("out.weight").all()
    _backward(model, 0)
    optimizer.step()
    assert model.out.weight.any()
    assert average.module.get_parameter("out.weight").all()


def test_a_resumed_pruner_goes_on_with_its_average() -> None:
    def run(steps: range, state: Any = None) -> Any:
        model = make_model()
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)
        average = _ema(model)
        pruner = lampfast.Pruner(model, optimizer, SCHEDULE, every=2, copies=average)
        parts: list[Any] = [model, optimizer, average, pruner]
        for part, saved in zip(parts, state or [], strict=False):
            part.load_state_dict(copy.deepcopy(saved))
        for step in steps:
            _backward(model, step)
            optimizer.step()
            average.update_parameters(model)
            pruner.step()
        return [copy.deepcopy(part.state_dict()) for part in parts]

    whole, resumed = run(range(STEPS)), run(range(7, STEPS), run(range(7)))
    assert whole[2].keys() == resumed[2].keys()
    for name, value in whole[2].items():
        assert torch.equal(value, resumed[2][name]), name
    _assert_same_zeros(resumed[2], resumed[0])


def test_loaded_masks_are_the_copys_too() -> None:
    model = make_model()
    lampfast.prune(model, 0.8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    saved = lampfast.keep_zeros(model, optimizer).state_dict()
    model, average = make_model(), make_model()
    kept = lampfast.keep_zeros(model, torch.optim.SGD(model.parameters(), 0.1), copies=average)
    kept.load_state_dict(saved)
    assert lampfast.report(average).sparsity == pytest.approx(0.8, abs=0.001)
    _assert_same_zeros(average, model)


@pytest.mark.parametrize(
    "move",
    [
        lambda average: average.half(),
        lambda average: average.to(memory_format=torch.channels_last),
        lambda average: average.double().to(memory_format=torch.channels_last),
        lambda average: average.load_state_dict(copy.deepcopy(average.state_dict())),
    ],
)
def test_the_masks_go_with_the_copy(move: Callable[[nn.Module], Any]) -> None:
    model = make_model()
    average = copy.deepcopy(model)
    lampfast.prune(model, 0.8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    lampfast.keep_zeros(model, optimizer, copies=average)
    move(average)
    for change in (optimizer.step, lambda: lampfast.prune(model, 0.9)):
        with torch.no_grad():
            for weight in average.parameters():
                weight.fill_(1.0)
        _backward(model, 0)
        change()
        _assert_same_zeros(average, model)


def test_a_copy_of_another_layout_from_the_start() -> None:
    model = make_model()
    average = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    lampfast.prune(model, 0.8)
    lampfast.keep_zeros(model, torch.optim.SGD(model.parameters(), 0.1), copies=average)
    _assert_same_zeros(average, model)


def test_tied_layers() -> None:
    model: Any = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    average: Any = _ema(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}  # none is tied
    lampfast.prune(model, 0.8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    lampfast.keep_zeros(model, optimizer, copies=[average, state])
    zeros = state["0.weight"] == 0
    assert zeros.any()
    for weight in (model[0].weight, average.module[0].weight, state["0.weight"], state["2.weight"]):
        assert torch.equal(weight == 0, zeros)


def test_stacks() -> None:
    weights = {"experts": nn.Parameter(torch.randn(4, 6, 5)), "up": nn.Parameter(torch.randn(6, 6))}
    average = {name: weight.detach().clone() for name, weight in weights.items()}
    optimizer = torch.optim.SGD(weights.values(), 0.1)
    choice: Any = {"stacked": "experts", "exclude": ["experts[[]2]"]}
    pruner = lampfast.Pruner(weights, optimizer, schedules.constant(0.7), copies=average, **choice)
    pruner.step()
    for name, weight in weights.items():
        assert torch.equal(weight == 0, average[name] == 0)
    assert weights["experts"][2].all()
    assert average["experts"][2].all()


NAMES = ["0.weight", "2.weight"]


@pytest.mark.parametrize(
    ("names", "theirs", "prefix"),
    [
        (NAMES, [*NAMES, "0.bias"], ""),
        (NAMES, [f"module.{name}" for name in NAMES], "module."),
        (
            NAMES,
            ["n_averaged", *(f"module._orig_mod.{name}" for name in NAMES)],
            "module._orig_mod.",
        ),
        ([f"module.{name}" for name in NAMES], NAMES, ""),
        ([f"net.{name}" for name in NAMES], [f"module.{name}" for name in NAMES], "module."),
        (["module.0.weight"], ["module.0.weight", "module.module.0.weight"], "module.module."),
    ],
)
def test_names_behind_those_of_wrappers(names: list[str], theirs: list[str], prefix: str) -> None:
    found = averages._matched(dict.fromkeys(names, 0), dict.fromkeys(theirs), "", may_lack=False)
    for name, other in found.items():
        assert other == prefix + ".".join(name.split(".")[-2:])
    assert list(found) == names


def test_a_mapping_may_have_some_layers_only() -> None:
    model = make_model()
    average = {"out.weight": model.out.weight.detach().clone()}
    lampfast.prune(model, 0.8)
    lampfast.keep_zeros(model, torch.optim.SGD(model.parameters(), 0.1), copies=average)
    assert torch.equal(average["out.weight"] == 0, model.out.weight == 0)


def _resized(model: Net) -> nn.Module:
    other = copy.deepcopy(model)
    other.out = nn.Linear(8, 4)
    return other


def _tied(model: Net) -> dict[str, torch.Tensor]:
    state = {"hidden.weight": torch.ones(8, 54), "conv.weight": torch.ones(6, 2, 3, 3)}
    return {**state, "out.weight": state["hidden.weight"]}


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda model: model, ValueError, "memory with the model's layers.* exclude="),
        (lambda model: AveragedModel(model.out), ValueError, "no layer 'conv.weight' and 2 more"),
        (lambda model: nn.ReLU(), ValueError, "no layer 'conv.weight'"),
        (lambda model: {}, ValueError, "no layer 'conv.weight'"),
        (_resized, ValueError, r"copies\[0\].out.weight has shape \(4, 8\), layer 'out.weight'"),
        (lambda model: model.state_dict(), ValueError, "may share memory"),
        (lambda model: {"out.weight": 3}, TypeError, "copies.* is a int; pass a torch tensor"),
        (lambda model: copy.deepcopy(model).to("meta"), TypeError, "copies.*meta"),
        (lambda model: [3], TypeError, "copies has a int at position 0"),
        (lambda model: "model", TypeError, "copies is a str"),
        (lambda model: iter([model]), TypeError, "copies is a "),
    ],
)
@pytest.mark.parametrize("how", ["keep_zeros", "Pruner"])
def test_what_is_no_copy(
    make: Callable[[Net], Any], error: type[Exception], match: str, how: str
) -> None:
    model = make_model()
    lampfast.prune(model, 0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    call: Any = lampfast.keep_zeros if how == "keep_zeros" else lampfast.Pruner
    schedule = [] if how == "keep_zeros" else [SCHEDULE]
    with pytest.raises(error, match=match):
        call(model, optimizer, *schedule, copies=make(model))
    assert not optimizer._optimizer_step_post_hooks


def test_a_copy_in_which_others_are_tied() -> None:
    weights = {name: nn.Parameter(torch.randn(4, 4)) for name in "ab"}
    shared = torch.randn(4, 4)
    with pytest.raises(ValueError, match=r"copies\[0\].b is tied to another layer there"):
        lampfast.keep_zeros(
            weights, torch.optim.SGD(weights.values(), 0.1), copies={"a": shared, "b": shared}
        )


def test_a_copy_that_changes_its_shape() -> None:
    model = make_model()
    average = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    kept = lampfast.keep_zeros(model, optimizer, copies=average)
    average.out.weight.data = torch.ones(2, 2)
    _backward(model, 0)
    with pytest.raises(ValueError, match=r"copies\[0\].out.weight.*shape \(2, 2\)"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"copies\[0\].out.weight has shape \(2, 2\) now"):
        kept.update()
    kept.remove()
    optimizer.step()


def test_an_average_inside_the_model_is_pointed_out() -> None:
    model: Any = nn.Module()
    model.net = make_model()
    model.ema = _ema(model.net)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.warns(UserWarning, match=r"'ema' is an AveragedModel.*copies=model.ema"):
        lampfast.Pruner(model, optimizer, SCHEDULE)
    with pytest.warns(UserWarning, match=r"'ema' is an AveragedModel.*exclude='ema\.\*'") as found:
        lampfast.keep_zeros(model, optimizer)
    assert found[0].filename == __file__
    with pytest.warns(UserWarning, match=r"'ema' is an AveragedModel.*not get the zeros.*\[\] if"):
        lampfast.keep_zeros(model, optimizer, include="net.*.weight").remove()
    other = copy.deepcopy(model.net)
    with pytest.warns(UserWarning, match=r"'ema' is an AveragedModel.*not get the zeros"):
        lampfast.keep_zeros(model, optimizer, exclude="ema.*", copies=other).remove()
    # What it says works, and says nothing more.
    lampfast.keep_zeros(model, optimizer, include="net.*.weight", copies=[]).remove()
    kept = lampfast.keep_zeros(model, optimizer, exclude="ema.*", copies=model.ema)
    lampfast.prune(model, 0.8, exclude="ema.*")
    _assert_same_zeros(model.ema, model.net)
    kept.remove()


def test_removed_it_holds_no_copy() -> None:
    model = make_model()
    average = copy.deepcopy(model)
    kept = lampfast.keep_zeros(model, torch.optim.SGD(model.parameters(), 0.1), copies=average)
    held = weakref.ref(average.out.weight)
    del average
    assert held() is not None
    kept.remove()
    gc.collect()
    assert held() is None
