"""Training with zeros kept: every step beside a loop that masks the weights after its own."""

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from compare import BITS
from refusal import refused
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.optimizer import ParamsT

import lampfast
from lampfast._engine import changes
from lampfast._training.zeros import KeptZeros, keep_zeros

STEPS = 300

OPTIMIZERS: dict[str, Callable[[ParamsT], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.05),
    "momentum": lambda p: SGD(p, lr=0.01, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda p: SGD(p, lr=0.01, momentum=0.9, nesterov=True, foreach=True),
    "sgd fused": lambda p: SGD(p, lr=0.01, momentum=0.9, weight_decay=1e-3, fused=True),
    "adam": lambda p: Adam(p, lr=0.01),
    "adamw": lambda p: AdamW(p, lr=0.01),
    "adamw foreach": lambda p: AdamW(p, lr=0.01, foreach=True, amsgrad=True),
    "adamw fused": lambda p: AdamW(p, lr=0.01, fused=True),
    "rmsprop": lambda p: RMSprop(p, lr=0.001, momentum=0.9, centered=True),
}


class Net(nn.Module):
    """A convolution and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 5, 3, padding=1)
        self.hidden = nn.Linear(5 * 9, 7)
        self.out = nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any function of all weights."""
        return self.out(self.hidden(self.conv(x).tanh().flatten(1)))  # type: ignore[no-any-return]


def make_model() -> Net:
    torch.manual_seed(0)
    return Net()


def batch(step: int) -> torch.Tensor:
    return torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(step))


def loss_of(model: Callable[..., Any], step: int) -> torch.Tensor:
    return (model(batch(step)) - 1).square().mean()  # type: ignore[no-any-return]


def train(
    model: nn.Module,
    optimizer: Optimizer,
    steps: range,
    after: Callable[[], None] = lambda: None,
) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        after()


def masks_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() != 0 for name, p in model.named_parameters() if p.dim() > 1}


def masking(model: nn.Module, masks: dict[str, torch.Tensor]) -> Callable[[], None]:
    """What users write by hand, here safe for NaN and without -0."""
    parameters = dict(model.named_parameters())

    @torch.no_grad()
    def mask() -> None:
        for name, kept in masks.items():
            parameters[name].copy_(torch.where(kept, parameters[name], 0.0))

    return mask


def assert_same_bits(got: nn.Module, expected: nn.Module) -> None:
    for (name, a), (_, b) in zip(got.named_parameters(), expected.named_parameters(), strict=True):
        integers = BITS[a.itemsize]
        assert torch.equal(a.detach().view(integers), b.detach().view(integers)), name


def assert_zeros_kept(model: nn.Module, masks: dict[str, torch.Tensor]) -> None:
    for name, kept in masks.items():
        weight = model.get_parameter(name).detach()
        assert not weight[~kept].view(BITS[weight.itemsize]).any(), name  # +0 to the bit


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The models are tiny; test_packed_masks.py has the threads."""
    torch.set_num_threads(1)


@pytest.fixture
def model() -> Net:
    model = make_model()
    lampfast.prune(model, 0.8)
    return model


# --- beside the loop that masks after each step ---


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_hundreds_of_steps(model: Net, name: str) -> None:
    expected, masks = copy.deepcopy(model), masks_of(model)
    optimizer = OPTIMIZERS[name](model.parameters())
    keep_zeros(model, optimizer)
    train(model, optimizer, range(STEPS), lambda: assert_zeros_kept(model, masks))
    train(expected, OPTIMIZERS[name](expected.parameters()), range(STEPS), masking(expected, masks))
    assert_same_bits(model, expected)
    for name, kept in masks.items():
        assert model.get_parameter(name).detach()[kept].ne(0).all()  # all were trained, so were we


def test_lbfgs(model: Net) -> None:
    masks = masks_of(model)

    def run(model: Net, after: Callable[[], None], keep: bool) -> None:
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, history_size=5)
        if keep:
            keep_zeros(model, optimizer)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, 0)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        for _ in range(60):
            optimizer.step(closure)  # type: ignore[no-untyped-call]
            after()

    expected = copy.deepcopy(model)
    run(model, lambda: assert_zeros_kept(model, masks), keep=True)
    run(expected, masking(expected, masks), keep=False)
    assert_same_bits(model, expected)


def test_gradients_that_are_not_finite(model: Net) -> None:
    expected, masks = copy.deepcopy(model), masks_of(model)
    optimizer, other = SGD(model.parameters(), lr=0.1), SGD(expected.parameters(), lr=0.1)
    keep_zeros(model, optimizer)
    for twin, steps in ((model, optimizer), (expected, other)):
        for p in twin.parameters():
            p.grad = torch.full_like(p, float("nan"))
            p.grad.view(-1)[::2] = float("inf")
        steps.step()
    masking(expected, masks)()
    assert_zeros_kept(model, masks)
    assert_same_bits(model, expected)


def test_gradient_scaling_that_skips_steps(model: Net) -> None:
    expected, masks = copy.deepcopy(model), masks_of(model)

    def run(model: nn.Module, after: Callable[[], None], keep: bool) -> int:
        optimizer = AdamW(model.parameters(), lr=0.01)
        if keep:
            keep_zeros(model, optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=5)
        skipped = 0
        for step in range(200):
            optimizer.zero_grad()
            loss = loss_of(model, step) * (float("inf") if step % 7 == 3 else 1.0)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            before = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            skipped += scaler.get_scale() < before
            after()
        return skipped

    assert run(model, lambda: assert_zeros_kept(model, masks), keep=True) > 20
    run(expected, masking(expected, masks), keep=False)
    assert_same_bits(model, expected)


def test_several_parameter_groups_and_optimizers(model: Net) -> None:
    expected, masks = copy.deepcopy(model), masks_of(model)

    def optimizers(model: Net) -> list[Optimizer]:
        groups = [
            {"params": model.conv.parameters(), "lr": 0.1},
            {"params": [model.hidden.weight], "weight_decay": 0.1},
        ]
        return [
            SGD(groups, lr=0.01, momentum=0.9),
            AdamW([model.hidden.bias, *model.out.parameters()]),
        ]

    ours, theirs = optimizers(model), optimizers(expected)
    keep_zeros(model, ours)
    mask = masking(expected, masks)
    for step in range(300):
        for twin, pair in ((model, ours), (expected, theirs)):
            twin.zero_grad()
            loss_of(twin, step).backward()  # type: ignore[no-untyped-call]
            pair[0].step()
            if step % 3 == 0:
                pair[1].step()
        mask()
        assert_zeros_kept(model, masks)
    assert_same_bits(model, expected)


def test_one_optimizer_restores_only_what_it_trains(model: Net) -> None:
    first, second = (
        SGD(model.conv.parameters(), lr=0.1),
        SGD([*model.hidden.parameters(), *model.out.parameters()], lr=0.1),
    )
    masks = masks_of(model)
    keep_zeros(model, [first, second])
    with torch.no_grad():
        model.conv.weight.fill_(1.0)
        model.out.weight.fill_(1.0)
    version = model.out.weight._version
    first.step()
    assert torch.equal(model.conv.weight != 0, masks["conv.weight"])
    assert torch.equal(model.out.weight, torch.ones_like(model.out.weight))
    assert model.out.weight._version == version
    second.step()
    assert_zeros_kept(model, masks)


def test_tied_frozen_and_unused_layers() -> None:
    torch.manual_seed(0)
    a, b, c, d = (nn.Linear(6, 6) for _ in range(4))
    b.weight = a.weight
    d.requires_grad_(False)
    model = nn.ModuleDict({"a": a, "b": b, "c": c, "d": d})
    lampfast.prune(model, 0.5)
    masks, frozen = masks_of(model), d.weight.clone()
    optimizer = Adam([p for p in model.parameters() if p.requires_grad], weight_decay=0.1)
    kept = keep_zeros(model, optimizer)
    assert list(kept.state_dict()) == ["a.weight", "c.weight", "d.weight"]
    for _ in range(20):
        optimizer.zero_grad()
        b(a(torch.randn(3, 6))).square().sum().backward()  # c has no gradient
        optimizer.step()
        assert_zeros_kept(model, masks)
    assert torch.equal(d.weight, frozen)


def test_a_layer_that_is_added_to_the_optimizer_later(model: Net) -> None:
    for p in model.out.parameters():
        p.requires_grad_(False)
    masks = masks_of(model)
    optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    keep_zeros(model, optimizer)
    train(model, optimizer, range(3))
    for p in model.out.parameters():
        p.requires_grad_(True)
    optimizer.add_param_group({"params": list(model.out.parameters())})
    train(model, optimizer, range(3))
    assert_zeros_kept(model, masks)


def test_a_resumed_run_equals_an_uninterrupted_one(model: Net) -> None:
    optimizer = AdamW(model.parameters(), lr=0.01)
    kept = keep_zeros(model, optimizer)
    train(model, optimizer, range(50))
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), kept.state_dict()], file)
    train(model, optimizer, range(50, 100))

    file.seek(0)
    states = torch.load(file, weights_only=True)
    again = make_model()
    other = AdamW(again.parameters(), lr=0.5)
    resumed = keep_zeros(again, other)
    again.load_state_dict(states[0])
    other.load_state_dict(states[1])
    resumed.load_state_dict(states[2])
    train(again, other, range(50, 100))
    assert_same_bits(again, model)


def test_loading_masks_zeroes_what_they_do_not_keep(model: Net) -> None:
    state = keep_zeros(model, SGD(model.parameters())).state_dict()
    masks = masks_of(model)
    dense = make_model()
    before = copy.deepcopy(dense)
    keep_zeros(dense, SGD(dense.parameters())).load_state_dict(state)
    masking(before, masks)()
    assert_same_bits(dense, before)


# --- a layer that moves, and one that is pruned again ---


@pytest.mark.parametrize(
    "move",
    [
        lambda model: model.to(memory_format=torch.channels_last),
        lambda model: model.double(),
        lambda model: model.bfloat16().float(),
        lambda model: model.load_state_dict({k: v + 0 for k, v in model.state_dict().items()}),
    ],
    ids=["channels_last", "double", "back and forth", "load_state_dict"],
)
def test_the_masks_go_with_the_layers(model: Net, move: Callable[[Net], Any]) -> None:
    masks, state = masks_of(model), keep_zeros(model, SGD(model.parameters())).state_dict()
    optimizer = SGD(model.parameters(), lr=0.1)
    kept = keep_zeros(model, optimizer)
    move(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert_zeros_kept(model, masks)
    assert all(bool(model.get_parameter(name)[mask].ne(0).all()) for name, mask in masks.items())
    assert all(torch.equal(kept.state_dict()[name], mask) for name, mask in state.items())


def test_another_shape_is_an_error_until_updated(model: Net) -> None:
    optimizer = SGD(model.parameters(), lr=0.1)
    kept = keep_zeros(model, optimizer)
    model.conv.weight.data.fill_(1.0)
    model.out.weight.data = torch.ones(3, 5)
    with refused(
        ValueError,
        "layer 'out.weight' had shape (3, 7) when its zeros were recorded and has shape (3, 5) now",
        "call update() or remove()",
        keeps=[model.conv.weight, model.out.weight],
    ):
        optimizer.step()
    with refused(ValueError, "layer 'out.weight' had shape (3, 7)", keeps=[]):
        kept.state_dict()
    lampfast.prune([torch.randn(9)], 3)  # nobody else is bothered
    kept.update()
    optimizer.step()
    assert torch.equal(model.out.weight, torch.ones_like(model.out.weight))


@pytest.mark.parametrize(
    "layers",
    [
        lambda model: model,
        lambda model: model.state_dict(),
        lambda model: [model.hidden.weight],
        lambda model: {"numpy": model.hidden.weight.detach().numpy()},
        lambda model: [model.hidden.weight.data[:4]],
    ],
    ids=["module", "state_dict", "one layer", "numpy", "a part of a layer"],
)
def test_pruning_again(model: Net, layers: Callable[[Net], Any]) -> None:
    optimizer = SGD(model.parameters(), lr=0.1)
    keep_zeros(model, optimizer)
    train(model, optimizer, range(5))
    chosen = layers(model)
    if isinstance(chosen, dict):
        chosen = {k: v for k, v in chosen.items() if v.ndim > 1}
    lampfast.prune(chosen, 0.95)
    masks = masks_of(model)
    train(model, optimizer, range(5))
    assert_zeros_kept(model, masks)
    assert all(bool(model.get_parameter(name)[mask].ne(0).all()) for name, mask in masks.items())


def test_pruning_one_layer_records_no_other(model: Net) -> None:
    optimizer = SGD(model.parameters(), lr=0.1)
    keep_zeros(model, optimizer)
    with torch.no_grad():
        model.conv.weight.zero_()  # a moment, not a decision
    lampfast.prune([model.out.weight], 0.9)
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    optimizer.step()
    assert int(model.conv.weight.count_nonzero()) > 0


def test_update_follows_what_is_zero_now(model: Net) -> None:
    optimizer = SGD(model.parameters(), lr=0.1)
    kept = keep_zeros(model, optimizer)
    with torch.no_grad():
        model.hidden.weight.copy_(torch.eye(7, 45))
    kept.update()
    train(model, optimizer, range(3))
    assert int(model.hidden.weight.count_nonzero()) == 7


# --- what stays as it was ---


def test_the_model_is_untouched(model: Net) -> None:
    names, before = list(model.state_dict()), copy.deepcopy(model)
    optimizer = SGD(model.parameters(), lr=0.1)
    keep_zeros(model, optimizer)
    assert list(model.state_dict()) == names
    twin = copy.deepcopy(model)
    assert_same_bits(twin, before)
    train(twin, SGD(twin.parameters(), lr=0.1), range(3))  # a copy is not kept
    assert int(twin.out.weight.count_nonzero()) == 21
    copied = copy.deepcopy(optimizer)
    assert not copied._optimizer_step_post_hooks


def test_a_stale_backward_is_noticed(model: Net) -> None:
    optimizer = AdamW(model.parameters(), fused=True)  # does not tell autograd by itself
    keep_zeros(model, optimizer)
    loss = loss_of(model, 0)
    train(model, optimizer, range(1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # type: ignore[no-untyped-call]


def test_a_backward_through_layers_that_did_not_step_is_fine() -> None:
    moved, other = nn.Linear(4, 4), nn.Linear(4, 4)
    optimizer = SGD([*moved.parameters(), *other.parameters()], lr=0.1)
    keep_zeros(nn.ModuleList([moved, other]), optimizer)
    x = torch.ones(1, 4, requires_grad=True)
    first, second = moved(x).sum(), other(x).square().sum()
    first.backward()
    optimizer.step()
    second.backward()


# --- optimizers that come later ---


def test_an_optimizer_that_is_made_anew_keeps_the_zeros(model: Net) -> None:
    masks = masks_of(model)
    handle = keep_zeros(model, SGD(model.parameters()))
    optimizer = AdamW(model.parameters(), lr=0.1)
    train(model, optimizer, range(3), lambda: assert_zeros_kept(model, masks))
    kept = handle._kept  # holding it must not matter
    handle.remove()
    train(model, optimizer, range(3))
    assert kept
    assert int(model.out.weight.count_nonzero()) == 21


def test_other_optimizers_may_train_what_has_no_memory(model: Net) -> None:
    handle = keep_zeros(model, SGD(model.parameters()))
    with FakeTensorMode():
        wrapped = nn.Parameter(torch.ones(3))
    SGD([wrapped], lr=0.1).step()  # another model's
    assert handle


def test_optimizers_of_other_layers_only(model: Net) -> None:
    masks = masks_of(model)
    biases = SGD([p for p in model.parameters() if p.dim() == 1], lr=0.1)
    weights = SGD([p for p in model.parameters() if p.dim() > 1], lr=0.1)
    keep_zeros(model, [biases, weights])
    for step in range(3):
        train(model, weights, range(step, step + 1))
        biases.step()
        assert_zeros_kept(model, masks)


def test_tied_by_their_memory_only() -> None:
    model = nn.ModuleList([nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)])
    first, second = model.parameters()
    second.data = first.data
    lampfast.prune(model, 0.8)
    optimizer = SGD([second], lr=0.1)
    keep_zeros(model, optimizer)
    second.grad = torch.ones(5, 5)
    optimizer.step()
    assert lampfast.report(model).kept == 5


# --- masks that are given ---


def test_masks_may_say_what_grows_and_what_goes(model: Net) -> None:
    optimizer = SGD(model.parameters(), lr=0.1)
    kept = keep_zeros(model, optimizer)
    masks = {name: torch.rand(mask.shape) < 0.5 for name, mask in masks_of(model).items()}
    before = copy.deepcopy(model)
    kept.update(masks)
    masking(before, masks)()
    assert_same_bits(model, before)
    train(model, optimizer, range(3), lambda: assert_zeros_kept(model, masks))
    for name, mask in masks_of(before).items():
        grown = masks[name] & ~mask
        assert int(model.get_parameter(name)[grown].count_nonzero()) > 0, name


def test_masks_that_do_not_fit_change_nothing(model: Net) -> None:
    kept = keep_zeros(model, SGD(model.parameters()))
    good = masks_of(model)
    cases: list[tuple[Any, type[Exception], str]] = [
        ([], TypeError, "masks is a list"),
        ({"out.weight": good["out.weight"]}, ValueError, "missing: ['conv.weight'"),
        ({**good, "out.weight": good["out.weight"].float()}, TypeError, "'out.weight' is torch"),
        ({**good, "out.weight": good["out.weight"].T}, ValueError, "'out.weight' has shape (7, 3)"),
    ]
    for masks, error, words in cases:
        with refused(error, words, keeps=list(model.parameters())):
            kept.update(masks)


def test_a_handle_cannot_be_copied(model: Net) -> None:
    kept = keep_zeros(model, SGD(model.parameters()))
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="call keep_zeros for the copies"):
            copied(kept)


def test_handles_come_and_go_while_others_prune() -> None:
    def come_and_go(_: int) -> None:
        for _ in range(200):
            layer = nn.Linear(2, 2)
            handle = keep_zeros(layer, SGD(layer.parameters()))
            lampfast.prune(layer, 0.5)
            handle.remove()
            assert int((layer.weight == 0).sum()) == 2

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(come_and_go, range(4)))


# --- layers that move ---


def test_another_order_of_the_same_memory(model: Net) -> None:
    weight = nn.Parameter(torch.arange(16.0).reshape(4, 4) * torch.eye(4))
    weight.data[0, 1] = 5.0
    optimizer = SGD([weight], lr=0.1)
    keep_zeros([weight], optimizer)
    kept = weight != 0
    weight.data = weight.data.as_strided((4, 4), (1, 4))
    weight.grad = torch.ones(4, 4)
    optimizer.step()
    assert not weight[~kept].any()


def test_masks_of_no_layer_move_where_one_cannot(model: Net) -> None:
    optimizer = SGD(model.parameters(), lr=0.1)
    handle = keep_zeros(model, optimizer)
    before = [x for layer in handle._kept.layers for x in (layer.view, layer.mask)]
    model.conv.weight.data = model.conv.weight.data.half()
    model.out.weight.data = torch.ones(3, 5)
    with pytest.raises(ValueError, match=r"layer 'out\.weight' had shape"):
        optimizer.step()
    after = [x for layer in handle._kept.layers for x in (layer.view, layer.mask)]
    assert all(a is b for a, b in zip(before, after, strict=True))


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("what", ["model", "step"])
def test_torch_compile(model: Net, what: str) -> None:
    masks = masks_of(model)
    optimizer = AdamW(model.parameters(), lr=0.01)
    keep_zeros(model, optimizer)
    run = torch.compile(model, backend="eager") if what == "model" else model
    step = torch.compile(optimizer.step, backend="eager") if what == "step" else optimizer.step
    for i in range(5):
        optimizer.zero_grad()
        loss_of(run, i).backward()  # type: ignore[no-untyped-call]
        step()
        assert_zeros_kept(model, masks)
    assert all(bool(model.get_parameter(name)[mask].ne(0).all()) for name, mask in masks.items())


# --- the end of it ---


def test_removed_it_keeps_nothing_and_holds_nothing() -> None:
    model = make_model()  # which a fixture would hold
    lampfast.prune(model, 0.8)
    optimizer = SGD(model.parameters(), lr=0.1)
    kept = keep_zeros(model, optimizer)
    kept.remove()
    kept.remove()
    assert not optimizer._optimizer_step_post_hooks
    train(model, optimizer, range(3))
    assert int(model.out.weight.count_nonzero()) == 21
    for call in (kept.update, kept.state_dict, lambda: kept.load_state_dict({})):
        with pytest.raises(RuntimeError, match="this handle was removed; call"):
            call()
    gone = weakref.ref(model.out.weight)
    del model, optimizer, call
    gc.collect()
    assert gone() is None


def test_a_context(model: Net) -> None:
    masks = masks_of(model)
    optimizer = SGD(model.parameters(), lr=0.1)
    with keep_zeros(model, optimizer) as kept:
        assert isinstance(kept, KeptZeros)
        train(model, optimizer, range(3))
        assert_zeros_kept(model, masks)
    train(model, optimizer, range(3))
    assert int(model.out.weight.count_nonzero()) == 21


def test_nothing_is_kept_alive_but_by_the_optimizers() -> None:
    model = make_model()
    optimizer = SGD(model.parameters(), lr=0.1)
    listeners = len(changes._listeners)
    keep_zeros(model, optimizer)
    assert len(changes._listeners) == listeners + 1
    weight, trainer = weakref.ref(model.out.weight), weakref.ref(optimizer)
    gc.collect()
    gc.disable()
    try:
        del model, optimizer
        assert weight() is None  # at once: there is no cycle
        assert trainer() is None
    finally:
        gc.enable()
    assert len(changes._listeners) == listeners


def test_it_says_what_it_keeps(model: Net) -> None:
    kept = keep_zeros(model, SGD(model.parameters()))
    assert repr(kept) == "KeptZeros(numel=426, layers=3)"


# --- errors, after which nothing is registered ---


def _refuse(error: type[Exception], words: str, model: Any, optimizers: Any, **choice: Any) -> None:
    given = optimizers if isinstance(optimizers, list) else [optimizers]
    listeners = len(changes._listeners)
    with pytest.raises(error) as caught:
        keep_zeros(model, optimizers, **choice)
    assert words in str(caught.value)
    hooked = [one for one in given if getattr(one, "_optimizer_step_post_hooks", None)]
    assert not hooked
    assert len(changes._listeners) == listeners


def test_optimizers_of_another_model(model: Net) -> None:
    ours, other = SGD(model.parameters()), SGD(nn.Linear(2, 2).parameters())
    _refuse(ValueError, "SGD has none of the layers; pass the optimizers", model, other)
    _refuse(ValueError, "SGD and SGD has none of the layers", {}, [ours, other])


def test_a_trained_layer_without_an_optimizer(model: Net) -> None:
    part = SGD(model.conv.parameters())
    words = "layer 'hidden.weight' requires a gradient but is in none of the optimizers"
    _refuse(ValueError, words, model, part)
    _refuse(ValueError, "pass all optimizers as a list, leave it out with exclude=", model, part)
    keep_zeros(model, part, exclude=["hidden.*", "out.*"]).remove()
    model.hidden.requires_grad_(False)
    model.out.requires_grad_(False)
    keep_zeros(model, part).remove()


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*")
def test_what_is_no_optimizer(model: Net) -> None:
    ours = SGD(model.parameters())
    _refuse(TypeError, "optimizers is a Net; pass the torch.optim.Optimizer", model, model)
    _refuse(TypeError, "optimizers is a NoneType", model, None)
    _refuse(TypeError, "optimizers is a str", model, "adam")
    _refuse(TypeError, "optimizers has a Linear at position 1", model, [ours, nn.Linear(2, 2)])
    _refuse(ValueError, "optimizers is empty", model, [])
    _refuse(TypeError, "optimizers has a type at position 0", model, [SGD])


def test_layers_that_are_not_trained_by_torch(model: Net) -> None:
    ours = SGD(model.parameters())
    arrays = {"a": np.ones(3, np.float32)}
    _refuse(TypeError, "layer 'a' is a numpy array, which no optimizer trains", arrays, ours)
    _refuse(TypeError, "layer '0' has dtype torch.int64", [torch.ones(3, dtype=torch.int64)], ours)
    _refuse(ValueError, "include='x.*' matches no name", model, ours, include="x.*")


def test_a_state_of_other_layers(model: Net) -> None:
    optimizer = SGD(model.parameters())
    kept = keep_zeros(model, optimizer)
    state = kept.state_dict()
    weights = list(model.parameters())
    bad: list[tuple[type[Exception], str, Any]] = [
        (TypeError, "state is a list", [state]),
        (
            ValueError,
            "(missing: ['conv.weight'], unknown: [])",
            {k: state[k] for k in list(state)[1:]},
        ),
        (ValueError, "unknown: ['x']", state | {"x": state["conv.weight"]}),
        (
            TypeError,
            "state of layer 'conv.weight' is torch.float32",
            state | {"conv.weight": torch.ones(12)},
        ),
        (TypeError, "state of layer 'conv.weight' is list, not", state | {"conv.weight": [1]}),
        (
            ValueError,
            "state of layer 'out.weight' has shape (2,), and (3,) is needed for its shape (3, 7)",
            state | {"out.weight": torch.zeros(2, dtype=torch.uint8)},
        ),
    ]
    for error, words, wrong in bad:
        with refused(error, words, keeps=weights):
            kept.load_state_dict(wrong)
    assert all(torch.equal(kept.state_dict()[name], mask) for name, mask in state.items())


def test_an_optimizer_that_is_given_twice(model: Net) -> None:
    optimizer = SGD(model.parameters())
    keep_zeros(model, [optimizer, optimizer])
    assert len(optimizer._optimizer_step_post_hooks) == 1
