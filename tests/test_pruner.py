"""The Pruner in training loops: against a loop by hand, resumed, misused."""

import copy
import io
from collections.abc import Callable
from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from refusal import refused
from torch import nn
from torch.nn.utils import prune
from torch.optim import SGD, Adam, AdamW, Optimizer

import lampfast
from lampfast import Pruner
from lampfast.methods import Method
from lampfast.schedules import Schedule, constant, cubic, geometric, linear

OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "momentum": lambda model: SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.01),
    "Adam": lambda model: Adam(model.parameters(), 0.01),
    "AdamW": lambda model: AdamW(model.parameters(), 0.01, weight_decay=0.1),
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Threads cost more than they bring to layers this small."""
    torch.set_num_threads(1)


def network(seed: int = 0) -> nn.Sequential:
    """A small convolutional network with normalisation."""
    torch.manual_seed(seed)
    head = nn.Flatten(), nn.Linear(12, 4)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), *head)


def train(model: nn.Module, optimizer: Optimizer, step: int) -> None:
    """One step of training, the same whenever it is done."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 1, 4, 4, generator=generator)
    optimizer.zero_grad()
    (model(x) - x.flatten(1)[:, :4]).square().mean().backward()
    optimizer.step()


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return bool(a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize(
    ("schedule", "every"),
    [
        (cubic(0.9, 15, initial=0.1, start=4), 1),
        (linear(0.75, 12), 5),
        (geometric(6, rounds=2), 1),
        (constant(0.6, start=7), 1),
        (lambda step: 0 if step < 5 else 0.5, 2),
    ],
    ids=["cubic", "linear", "geometric", "constant", "function"],
)
def test_a_loop_by_hand_gives_the_same(
    make: Callable[[nn.Module], Optimizer], schedule: Schedule, every: int
) -> None:
    """Prune when due, multiply by the mask after every step."""
    model, twin = network(), network()
    optimizer, by_hand = make(model), make(twin)
    pruner = Pruner(model, optimizer, schedule, every=every)
    masks: dict[str, torch.Tensor] = {}
    history: list[tuple[int, float]] = []
    last = 0.0
    for step in range(1, 25):
        train(model, optimizer, step)
        pruner.step()

        train(twin, by_hand, step)
        with torch.no_grad():
            for name, mask in masks.items():
                weight = twin.get_parameter(name)
                weight.copy_(torch.where(mask, weight, 0.0))
        if step % every == 0 and schedule(step) > last:
            last = float(schedule(step))
            history.append((step, last))
            masks = lampfast.masks(twin, last)
            report = lampfast.prune(twin, last)
            assert pruner.report == report
        assert same(model.state_dict(), twin.state_dict())
        assert pruner.history == history
    assert lampfast.report(model).sparsity == pytest.approx(last, abs=0.01)
    assert pruner.report.sparsity == lampfast.report(model).sparsity


def test_thousands_of_steps() -> None:
    torch.manual_seed(0)
    model = nn.Linear(16, 16)
    optimizer = AdamW(model.parameters(), 0.01, weight_decay=0.1)
    pruner = Pruner(model, optimizer, cubic(0.9, 2000), every=50)
    inputs = torch.randn(32, 16)
    pruned = torch.zeros(16, 16, dtype=torch.bool)
    for step in range(1, 2501):
        optimizer.zero_grad()
        (model(inputs) - inputs).square().mean().backward()
        optimizer.step()
        assert not model.weight[pruned].any()
        pruner.step()
        if step % 50 == 0:
            assert not model.weight[pruned].any(), "what is pruned stays pruned"
            pruned = model.weight.detach() == 0
    assert int(pruned.sum()) == round(0.9 * 256)
    assert [step for step, _ in pruner.history] == list(range(50, 2001, 50))
    sparsities = [sparsity for _, sparsity in pruner.history]
    assert all(a < b for a, b in pairwise(sparsities))
    assert sparsities[-1] == 0.9


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_resumed_run_equals_an_uninterrupted_one(
    make: Callable[[nn.Module], Optimizer],
) -> None:
    """With the checkpoint at any step; on the way weights of 0.0 that nobody pruned."""
    steps, schedule = 14, linear(0.8, 12, initial=0.2, start=4)

    def start(seed: int) -> tuple[nn.Sequential, Optimizer, Pruner]:
        model = network(seed)
        optimizer = make(model)
        return model, optimizer, Pruner(model, optimizer, schedule, every=3)

    def go_on(model: nn.Sequential, optimizer: Optimizer, pruner: Pruner, first: int) -> None:
        for step in range(first, steps + 1):
            train(model, optimizer, step)
            if step % 2:  # as training may bring it there
                weight = model.get_parameter("4.weight")
                weight.data.view(-1)[int(weight.abs().argmax())] = 0.0
            pruner.step()
            checkpoints.append(checkpoint(model, optimizer, pruner))

    def checkpoint(model: nn.Module, optimizer: Optimizer, pruner: Pruner) -> bytes:
        file = io.BytesIO()
        torch.save([part.state_dict() for part in (model, optimizer, pruner)], file)
        return file.getvalue()

    def load(saved: bytes) -> Any:
        return torch.load(io.BytesIO(saved), weights_only=True)

    checkpoints: list[bytes] = []
    run = start(0)
    checkpoints.append(checkpoint(*run))
    go_on(*run, first=1)
    uninterrupted = [load(saved) for saved in checkpoints]
    for done, saved in enumerate(uninterrupted):
        checkpoints = []
        resumed = start(seed=1)
        for part in (0, 1, 2) if done % 2 else (2, 1, 0):  # in any order
            resumed[part].load_state_dict(saved[part])
        go_on(*resumed, first=done + 1)
        assert same([load(state) for state in checkpoints], uninterrupted[done + 1 :])
        assert resumed[2].history == run[2].history


def test_accumulated_gradients_and_learning_rates() -> None:
    """The user's step is the unit, whatever happens between; a scheduler may wrap step()."""
    model = network()
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    pruner = Pruner(model, optimizer, constant(0.5, start=3), every=3)
    for batch in range(1, 41):
        model(torch.randn(4, 1, 4, 4)).square().mean().backward()
        if batch % 4 == 0:
            optimizer.step()
            pruner.step()
            rate.step()
            optimizer.zero_grad()
            pruned = 0.5 if batch >= 12 else 0.0
            assert lampfast.report(model).sparsity == pytest.approx(pruned, abs=0.01)
    assert pruner.history == [(3, 0.5)]


def test_steps_that_a_grad_scaler_skips() -> None:
    model = nn.Linear(4, 4)
    optimizer = AdamW(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    pruner = Pruner(model, optimizer, constant(0.5, start=2))
    for step in range(1, 7):
        loss = model(torch.ones(2, 4)).square().mean()
        scaler.scale(loss * float("inf") if step % 2 == 0 else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        pruner.step()
        optimizer.zero_grad()
        assert lampfast.report(model).kept == (16 if step < 2 else 8)
    assert pruner.history == [(2, 0.5)]


def test_several_optimizers_and_chosen_layers() -> None:
    model = network()
    optimizers = [SGD(model[:3].parameters(), 0.1), AdamW(model[3:].parameters(), 0.1)]
    with Pruner(model, optimizers, constant(0.5), include="*.weight", exclude="1.*") as pruner:
        for _ in range(5):
            model(torch.randn(4, 1, 4, 4)).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
            pruner.step()
            names = [layer.name for layer in pruner.report.layers]
            assert names == ["0.weight", "4.weight"]
            assert pruner.report.kept == lampfast.report(model).kept == 75 - 38
    assert model.get_parameter("1.weight").all()


@pytest.mark.parametrize("method", get_args(Method))
def test_methods(method: Method) -> None:
    model, twin = network(), network()
    pruner = Pruner(model, SGD(model.parameters(), 0.1), linear(0.45, 3), method=method)
    for step in (1, 2, 3):
        report = lampfast.prune(twin, linear(0.45, 3)(step), method=method)
        pruner.step()
        assert pruner.report == report
        assert same(model.state_dict(), twin.state_dict())


def test_zeros_that_are_there_at_first_are_kept() -> None:
    model = network()
    optimizer = AdamW(model.parameters(), 0.1)
    lampfast.prune(model, 0.5)
    zeros = {name: layer == 0 for name, layer in lampfast.parameters.named(model).items()}
    pruner = Pruner(model, optimizer, constant(0.75, start=3))
    assert pruner.report == lampfast.report(model)
    for step in range(1, 5):
        train(model, optimizer, step)
        pruner.step()
        assert all(not model.get_parameter(name)[zero].any() for name, zero in zeros.items())
    assert lampfast.report(model).kept == 75 - 56


def test_a_layer_that_is_zero_throughout_is_pointed_out() -> None:
    model = network()
    nn.init.zeros_(model.get_parameter("4.weight"))
    optimizer = SGD(model.parameters(), 0.1)
    pruner = Pruner(model, optimizer, constant(0.5))
    with pytest.warns(UserWarning, match="layer '4.weight' is zero throughout") as caught:
        pruner.step()
    assert [warning.filename for warning in caught] == [__file__]
    pruner.step()  # once is enough
    resumed = Pruner(model, optimizer, constant(0.5))
    resumed.load_state_dict(pruner.state_dict())
    resumed.step()
    Pruner(model, optimizer, constant(0.5), exclude="4.*").step()


def test_a_removed_pruner_lets_go() -> None:
    model = network()
    optimizer = AdamW(model.parameters(), 0.1)
    pruner = Pruner(model, optimizer, constant(0.5))
    train(model, optimizer, 1)
    pruner.step()
    pruner.remove()
    pruner.remove()
    with pytest.raises(RuntimeError, match="was removed"):
        pruner.step()
    assert pruner.history == [(1, 0.5)]
    train(model, optimizer, 2)
    assert lampfast.report(model).sparsity < 0.1
    assert not optimizer._optimizer_step_post_hooks


def test_a_removed_pruner_has_no_state() -> None:
    model = network()
    with Pruner(model, AdamW(model.parameters()), constant(0.5)) as pruner:
        state = pruner.state_dict()
    with pytest.raises(RuntimeError, match="take its state before"):
        pruner.state_dict()
    with pytest.raises(RuntimeError, match="make a new one to load"):
        pruner.load_state_dict(state)


def test_a_pruner_cannot_be_copied() -> None:
    model = network()
    pruner = Pruner(model, AdamW(model.parameters()), constant(0.5))
    for copied in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="a Pruner cannot be copied"):
            copied(pruner)


def test_a_model_that_is_sparser_than_the_schedule_is_left_alone() -> None:
    model = network()
    lampfast.prune(model, 0.8)
    pruner = Pruner(model, SGD(model.parameters()), linear(0.9, 9))
    for _ in range(9):
        pruner.step()
        assert pruner.report == lampfast.report(model)
    assert [step for step, _ in pruner.history] == [8, 9]
    assert lampfast.report(model).kept == 75 - round(0.9 * 75)


def test_an_optimizer_that_is_made_anew_keeps_the_zeros() -> None:
    model = network()
    pruner = Pruner(model, SGD(model.parameters()), constant(0.8))
    pruner.step()
    optimizer = AdamW(model.parameters(), 0.1)
    for step in range(3):
        train(model, optimizer, step)
        pruner.step()
        assert lampfast.report(model).kept == 15


def test_the_report_after_loading_is_of_the_model_now() -> None:
    model = network()
    pruner = Pruner(model, SGD(model.parameters()), linear(0.8, 2))
    start = pruner.state_dict()
    pruner.step()
    assert pruner.report.kept == 45
    network_before = network()
    model.load_state_dict(network_before.state_dict())
    pruner.load_state_dict(start)
    assert pruner.report.kept == 75


def test_the_history_is_a_copy() -> None:
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    pruner = Pruner(model, optimizer, constant(0.5))
    pruner.history.append((1, 1.0))
    pruner.state_dict()["history"].append([1, 1.0])
    assert pruner.history == []


@pytest.mark.parametrize(
    ("schedule", "error", "words"),
    [
        (lambda step: 1.5, ValueError, ("schedule(3) is 1.5", "0.0 to 1.0")),
        (lambda step: 1000, ValueError, ("schedule(3) is 1000", "0.0 to 1.0")),
        (lambda step: -0.1, ValueError, ("schedule(3) is -0.1",)),
        (lambda step: float("nan"), ValueError, ("schedule(3) is nan",)),
        (lambda step: None, TypeError, ("schedule(3) is a NoneType",)),
        (lambda step: True, TypeError, ("schedule(3) is a bool",)),
        (lambda step: torch.tensor(0.9), TypeError, ("schedule(3) is a Tensor",)),
        (lambda step: 1 / 0, ZeroDivisionError, ("division",)),
        (
            lambda step: 0.4,
            ValueError,
            ("schedule(3) is 0.4, below the 0.5", "after step 2", "never goes down"),
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_a_schedule_may_not_give(
    schedule: Callable[[int], Any], error: type[Exception], words: tuple[str, ...]
) -> None:
    model = network()
    optimizer = AdamW(model.parameters(), 0.1)
    pruner = Pruner(model, optimizer, lambda step: 0.5 if step < 3 else schedule(step), every=1)
    for step in (1, 2):
        train(model, optimizer, step)
        if step == 2:
            pruner._history[-1] = (2, 0.5)
        pruner.step()
    state = copy.deepcopy(pruner.state_dict())
    for _ in range(2):  # it is not counted, so it is the third step again
        with refused(error, *words, keeps=model.state_dict().values()):
            pruner.step()
        assert same(pruner.state_dict(), state)


def test_ones_of_a_schedule_are_shares() -> None:
    model = nn.Linear(4, 4)
    pruner = Pruner(model, SGD(model.parameters(), 0.1), lambda step: 1 if step > 1 else 0)
    pruner.step()
    assert pruner.history == []
    pruner.step()
    assert pruner.history == [(2, 1.0)]
    assert not model.weight.any()


def test_rounding_of_a_schedule_is_not_going_down() -> None:
    model = nn.Linear(4, 4)
    values = iter([0.3, 0.3 - 2**-54, 0.3 + 2**-54, 0.6])
    pruner = Pruner(model, SGD(model.parameters(), 0.1), lambda step: next(values))
    for _ in range(4):
        pruner.step()
    assert pruner.history[0] == (1, 0.3)
    assert pruner.history[-1] == (4, 0.6)
    assert repr(pruner).startswith("Pruner(step=4, sparsity=0.6000, schedule=<function")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"schedule": 0.9}, TypeError, ("schedule is a float", "constant(0.9)")),
        ({"schedule": constant}, TypeError, ("the class constant itself", "constant(0.9)")),
        ({"every": 0}, ValueError, ("every is 0", "least is 1")),
        ({"every": 2.5}, TypeError, ("every is 2.5", "int")),
        ({"method": "magnitude"}, ValueError, ("method='magnitude'", "'global'")),
        ({"model": nn.ReLU()}, ValueError, ("ReLU has no linear", "no other parameter")),
        ({"model": nn.LayerNorm(2)}, ValueError, ("LayerNorm has no linear", "include='*weight'")),
        ({"include": "fc"}, ValueError, ("include='fc' matches no name",)),
        ({"model": [1]}, TypeError, ("layer '0' is a int",)),
        ({"model": {"a": 1}}, TypeError, ("layer 'a' is a int",)),
        ({"model": b"model"}, TypeError, ("model is a bytes",)),
        ({"model": range(3)}, TypeError, ("model is a range",)),
        ({"process_group": 3}, ValueError, ("process_group is a int", "init_process_group")),
        ({"optimizers": "of a part"}, ValueError, ("'4.weight'", "optimizer")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_are_refused(
    arguments: dict[str, Any], error: type[Exception], words: tuple[str, ...]
) -> None:
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    if "optimizers" in arguments:
        arguments = {"optimizers": SGD(model[0].parameters(), 0.1)}
    good = {"model": model, "optimizers": optimizer, "schedule": constant(0.5)}
    with refused(error, *words, keeps=model.state_dict().values()):
        Pruner(**{**good, **arguments})
    assert not optimizer._optimizer_step_post_hooks


def _replace(model: nn.Sequential) -> None:
    model[4].weight = nn.Parameter(torch.ones(4, 12))


def _replace_module(model: nn.Sequential) -> None:
    model[4] = nn.Linear(12, 4)


def _add(model: nn.Sequential) -> None:
    model.append(nn.Linear(4, 4))


def _drop(model: nn.Sequential) -> None:
    del model[4]


def _reshape(model: nn.Sequential) -> None:
    weight = model.get_parameter("4.weight")
    weight.data = torch.ones(2, 12)


def _reparametrize(model: nn.Sequential) -> None:
    prune.identity(model[4], "weight")  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_replace, ("layer '4.weight' was replaced", "make a new one")),
        (_replace_module, ("layer '4.weight' was replaced",)),
        (_add, ("layer '5.weight' is new",)),
        (_drop, ("layer '4.weight' is gone",)),
        (_reshape, ("layer '4.weight' changed its shape from (4, 12) to (2, 12)",)),
        (_reparametrize, ("layer '4.weight' is computed", "prune.remove")),
    ],
)
def test_a_model_that_changed(
    change: Callable[[nn.Sequential], None], words: tuple[str, ...]
) -> None:
    model = network()
    pruner = Pruner(model, SGD(model.parameters(), 0.1), linear(0.9, 10))
    pruner.step()
    history = pruner.history
    change(model)
    with refused(ValueError, *words, keeps=model.state_dict().values()):
        pruner.step()
    assert (pruner._step, pruner.history) == (1, history)


def test_nan_in_a_weight_changes_nothing() -> None:
    model = network()
    pruner = Pruner(model, SGD(model.parameters(), 0.1), linear(1.0, 4))
    pruner.step()
    state = copy.deepcopy(pruner.state_dict())
    model.get_parameter("4.weight").data[1, 2] = float("nan")
    with refused(ValueError, "'4.weight' has nan at index (1, 2)", keeps=model.parameters()):
        pruner.step()
    assert same(pruner.state_dict(), state)
    model.get_parameter("4.weight").data[1, 2] = 0.5
    pruner.step()
    assert pruner.history == [(1, 0.25), (2, 0.5)]
    assert pruner.report.kept == 75 - 38


def _with_meta_masks(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "zeros": {name: mask.to("meta") for name, mask in state["zeros"].items()}}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda state: {**state, "zeros": {"fc": torch.zeros(1)}}, ("0.weight",)),
        (lambda state: {**state, "zeros": dict([*state["zeros"].items()][:1])}, ("4.weight",)),
        (
            lambda state: {
                **state,
                "zeros": {**state["zeros"], "4.weight": torch.zeros(9, dtype=torch.uint8)},
            },
            ("4.weight",),
        ),
        (lambda state: state["zeros"], ("not the state of a Pruner", "history")),
        (lambda state: None, ("state is a NoneType",)),
        (lambda state: {**state, "history": 3}, ("not the state of a Pruner",)),
        (lambda state: {**state, "history": [(1, 0.2, 3)]}, ("not the state of a Pruner",)),
        (lambda state: {**state, "history": [("a", 0.2)]}, ("history is a str",)),
        (lambda state: {**state, "step": -1}, ("step is -1",)),
        (lambda state: {**state, "history": [[1, 7.0]]}, ("history", "7.0")),
        (lambda state: {**state, "history": [[1, 0.2], [1, 0.3]]}, ("steps [1, 1]",)),
        (lambda state: {**state, "history": [[2, 0.2], [1, 0.3]]}, ("steps [2, 1]",)),
        (lambda state: {**state, "history": [[1, 0.3], [4, 0.4]]}, ("steps [1, 4]", "step is 3")),
        (lambda state: {**state, "history": [[1, 0.3], [2, 0.2]]}, ("[0.3, 0.2]", "go down")),
        (_with_meta_masks, ("state of layer '0.weight' has no values", "meta")),
    ],
)
def test_states_that_are_not_this_models(
    other: Callable[[dict[str, Any]], Any], words: tuple[str, ...]
) -> None:
    model = network()
    optimizer = AdamW(model.parameters(), 0.1)
    pruner = Pruner(model, optimizer, linear(0.9, 10))
    for step in (1, 2, 3):
        train(model, optimizer, step)
        pruner.step()
    state, report = copy.deepcopy(pruner.state_dict()), pruner.report
    is_type = ("state is a NoneType", "history is a str", "state of layer '0.weight' has no values")
    error = TypeError if words[0] in is_type else ValueError
    with refused(error, *words, keeps=model.state_dict().values()):
        pruner.load_state_dict(other(copy.deepcopy(state)))
    assert same(pruner.state_dict(), state)
    assert pruner.report == report


def test_the_report_is_read_from_the_weights() -> None:
    model = network()
    pruner = Pruner(model, SGD(model.parameters()), constant(0.8))
    pruner.step()
    assert pruner.report.kept == 15
    with torch.no_grad():
        model.get_parameter("4.weight").fill_(1.0)  # as something that is not hooked
    assert pruner.report.layers[-1].kept == model.get_parameter("4.weight").numel()
