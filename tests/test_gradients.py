"""Masked gradients: what clipping and optimizers see is the gradient times the mask."""

import copy
import gc
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from refusal import refused
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, AdamW, Optimizer

import lampfast
from lampfast import Pruner, keep_zeros
from lampfast._engine import packed_masks
from lampfast.schedules import constant, linear

STEPS = 20

# Optimizers whose step for a weight depends on the gradients of others.
MIXING: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    name: lambda p, made=made: made(p, lr=0.01)  # type: ignore[misc]
    for name in ("Adafactor", "Muon")
    if (made := getattr(torch.optim, name, None)) is not None
}
MIXING["clipped SGD"] = lambda p: SGD(p, lr=0.1, momentum=0.9)


def network(*, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 64, bias=bias), nn.ReLU(), nn.Linear(64, 8, bias=bias))


def backward(model: nn.Module, step: int = 0, **options: Any) -> None:
    x = torch.randn(16, 40, generator=torch.Generator().manual_seed(step))
    dtype = next(model.parameters()).dtype
    model(x.to(dtype)).square().sum().backward(**options)


def go_back(loss: Any, **options: Any) -> None:
    loss.backward(**options)


def matrices(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.ndim > 1]


def leaks(model: nn.Module) -> int:
    """How many gradients of weights that are zero are not."""
    return sum(int((p.grad[p == 0] != 0).sum()) for p in matrices(model) if p.grad is not None)


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in matrices(model) if p.grad is not None]


_handles: list[Any] = []


@pytest.fixture(autouse=True)
def _released() -> Iterator[None]:
    """Handles are held on to for one test."""
    torch.set_num_threads(1)
    yield
    _handles.clear()


def kept(model: Any, optimizer: Any = None, **options: Any) -> Any:
    optimizer = optimizer or SGD(model.parameters(), lr=0.1)
    _handles.append(keep_zeros(model, optimizer, mask_gradients=True, **options))
    return _handles[-1]


def alive(model: nn.Module) -> torch.Tensor:
    """What there is of the first layer that is not zero."""
    weight = next(model.parameters()).detach()
    return weight[weight != 0]


@pytest.mark.parametrize("name", MIXING)
def test_training_equals_a_loop_that_multiplies_by_masks(name: str) -> None:
    model = network(bias=False)
    lampfast.prune(model, 0.95)
    reference, dense = copy.deepcopy(model), copy.deepcopy(model)
    optimizers = [MIXING[name](list(m.parameters())) for m in (model, reference, dense)]
    handle = kept(model, optimizers[0])
    zeros = keep_zeros(dense, optimizers[2])
    masks = [p.detach() != 0 for p in reference.parameters()]
    for step in range(STEPS):
        for m, optimizer in zip((model, reference, dense), optimizers, strict=True):
            optimizer.zero_grad()
            backward(m, step)
            if m is reference:
                for p, mask in zip(reference.parameters(), masks, strict=True):
                    assert p.grad is not None
                    p.grad.mul_(mask)
            clip_grad_norm_(m.parameters(), 1.0)
            optimizer.step()
        with torch.no_grad():
            for p, mask in zip(reference.parameters(), masks, strict=True):
                p.mul_(mask)
        for p, expected in zip(model.parameters(), reference.parameters(), strict=True):
            assert torch.equal(p, expected)
    apart = (alive(model) - alive(dense)).abs().max()
    assert apart > 1e-3, "pruned weights count without the option"
    handle.remove()
    zeros.remove()


def test_the_norm_is_that_of_what_is_kept() -> None:
    model = network(bias=False)
    lampfast.prune(model, 0.95)
    plain = copy.deepcopy(model)
    kept(model)
    backward(model)
    backward(plain)
    masked = [g * (p != 0) for g, p in zip(gradients(plain), matrices(plain), strict=True)]
    expected = torch.nn.utils.get_total_norm(masked)
    assert torch.equal(clip_grad_norm_(model.parameters(), 1.0), expected)
    assert expected < 0.5 * clip_grad_norm_(plain.parameters(), 1.0)


def test_a_survivors_step_of_adafactor_is_not_made_small_by_pruned_weights() -> None:
    if not hasattr(torch.optim, "Adafactor"):
        pytest.skip("torch has no Adafactor")
    torch.manual_seed(0)
    gradient, mask = torch.randn(100, 100), torch.rand(100, 100) < 0.05
    moved = {}
    for name, option in (("dense", False), ("masked", True)):
        weight = nn.Parameter(torch.randn(100, 100) * mask)
        before = weight.detach().clone()
        optimizer = torch.optim.Adafactor([weight], lr=0.01, weight_decay=0.0)
        handle = keep_zeros([weight], optimizer, mask_gradients=option)
        go_back((weight * gradient).sum())
        optimizer.step()  # type: ignore[no-untyped-call]
        moved[name] = float((weight.detach() - before)[mask].square().mean().sqrt())
        handle.remove()
    assert moved["masked"] / moved["dense"] > 3, moved


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.double(),
        lambda model: model.bfloat16(),
        lambda model: model.requires_grad_(True),
    ],
    ids=["double", "bfloat16", "the same"],
)
@pytest.mark.parametrize("set_to_none", [True, False])
def test_accumulation_also_in_another_dtype(
    change: Callable[[nn.Module], nn.Module], set_to_none: bool
) -> None:
    model = network()
    lampfast.prune(model, 0.9)
    optimizer = SGD(model.parameters(), lr=0.1)
    kept(model, optimizer)
    change(model)
    reference = copy.deepcopy(model)
    for step in range(4):
        backward(model, step)
        backward(reference, step)
        assert leaks(model) == 0
        for mine, other, p in zip(
            gradients(model), gradients(reference), matrices(model), strict=True
        ):
            assert torch.equal(mine, other * (p != 0))
    optimizer.step()
    optimizer.zero_grad(set_to_none)
    backward(model, 5)
    assert leaks(model) == 0


def test_a_gradient_scaler() -> None:
    """It skips no step for an overflow of what is pruned, and unscales what is kept."""
    weight = nn.Parameter(torch.tensor([1.0, 0.0, 3.0]))
    optimizer = SGD([weight], lr=1.0)
    kept([weight], optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    go_back(scaler.scale((weight * torch.tensor([1.0, float("inf"), 2.0])).sum()))
    scaler.unscale_(optimizer)
    assert weight.grad is not None
    assert weight.grad.tolist() == [1.0, 0.0, 2.0]
    scaler.step(optimizer)
    scaler.update()
    assert weight.tolist() == [0.0, 0.0, 1.0]
    assert scaler.get_scale() == 8.0


def test_channels_last_needs_no_other_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Depthwise layers have a dimension of size 1, whose stride may be any."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 4, 1))
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    lampfast.prune(model, 0.8)
    kept(model)
    monkeypatch.setattr(packed_masks, "from_bools", None)
    x = torch.randn(2, 8, 9, 9).to(memory_format=torch.channels_last)
    go_back(model(x).square().sum())
    assert leaks(model) == 0
    monkeypatch.undo()
    for p in model.parameters():
        p.grad = None
    model.to(memory_format=torch.contiguous_format)
    go_back(model(x.contiguous()).square().sum())
    assert leaks(model) == 0


def test_gradients_with_a_graph() -> None:
    """Second derivatives are those of the masked gradient."""
    weight = nn.Parameter(torch.tensor([2.0, 0.0, 3.0]))
    kept([weight], SGD([weight], lr=0.1))
    inputs = torch.tensor([1.0, 4.0, 5.0])
    with pytest.warns(UserWarning, match="create_graph"):
        go_back((weight.sum() ** 2 * inputs).sum(), create_graph=True)
    gradient = weight.grad
    assert gradient is not None
    assert gradient.tolist() == [100.0, 0.0, 100.0]
    (second,) = torch.autograd.grad(gradient.sum(), weight)
    assert second.tolist() == [40.0, 40.0, 40.0]
    weight.grad = None


def test_sparse_gradients() -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(10, 4, sparse=True)
    optimizer = SGD(embedding.parameters(), lr=0.1)
    lampfast.prune(embedding, 0.5, include="weight")
    kept(embedding, optimizer, include="weight")
    mask, expected = embedding.weight.detach() != 0, torch.zeros(10, 4)
    for rows in ([1, 1, 3], [5, 1]):
        go_back(embedding(torch.tensor(rows)).sum())
        for row in rows:
            expected[row] += mask[row]
        assert embedding.weight.grad is not None
        assert embedding.weight.grad.is_sparse
        assert torch.equal(embedding.weight.grad.to_dense(), expected)


def test_gradients_of_another_dtype() -> None:
    if not hasattr(torch.Tensor, "grad_dtype"):
        pytest.skip("torch has no gradients of another dtype")
    torch.manual_seed(0)
    weight, factor = nn.Parameter(torch.randn(8, 8).bfloat16()), torch.randn(8, 8)
    lampfast.prune([weight], 0.5)
    weight.grad_dtype = torch.float32
    kept([weight], SGD([weight]))
    go_back((weight.float() * factor).sum())
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    assert torch.equal(weight.grad, factor.bfloat16().float() * (weight != 0))


@pytest.mark.filterwarnings("ignore:grad and param do not obey")
def test_layers_that_are_parts_or_other_names_of_what_is_trained() -> None:
    torch.manual_seed(0)
    whole, factor = nn.Parameter(torch.randn(6, 8)), torch.randn(6, 8)
    parts = {"a": whole.detach()[:2], "b": whole.detach()[4:, ::2]}
    lampfast.prune(parts, 0.5)
    kept(parts, SGD([whole]))
    expected = torch.where(whole.detach() == 0, 0, factor)
    go_back((whole * factor).sum())
    assert whole.grad is not None
    assert torch.equal(whole.grad, expected)
    whole.grad = torch.zeros(8, 6).t()  # it lies otherwise in memory
    go_back((whole * factor).sum())
    assert torch.equal(whole.grad, expected)

    model = network()
    lampfast.prune(model, 0.9)
    layers = {name: value for name, value in model.state_dict().items() if value.ndim > 1}
    kept(layers, SGD(model.parameters()))
    backward(model)
    assert leaks(model) == 0


def test_layers_beside_each_other_in_one_memory() -> None:
    """Their spans overlap, and no element does."""
    torch.manual_seed(0)
    both = torch.randn(6, 8)
    left, right = nn.Parameter(both[:, :3]), nn.Parameter(both[:, 3:])
    lampfast.prune([left, right], 0.5)
    kept([left, right], SGD([left, right]))
    go_back(left.sum() + right.sum())
    for weight in (left, right):
        assert torch.equal(weight.grad, (weight != 0).float())  # type: ignore[arg-type]


def test_a_parameter_that_has_part_of_a_layer() -> None:
    flat = torch.randn(10)
    first, second = nn.Parameter(flat[:4]), nn.Parameter(flat[4:])
    optimizer = SGD([first, second])
    keep_zeros([flat], optimizer).remove()
    with refused(ValueError, "'0'", "part", "mask_gradients=", keeps=[flat]):
        kept([flat], optimizer)
    assert not first._post_accumulate_grad_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_tied_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40), nn.Linear(40, 40))
    model[1].weight = model[0].weight
    model[2].weight = nn.Parameter(model.get_parameter("0.weight").detach())  # by its memory only
    lampfast.prune(model, 0.9)
    kept(model)
    backward(model)
    assert leaks(model) == 0
    gradient = model.get_parameter("2.weight").grad
    assert gradient is not None
    assert gradient.any()


def test_slices_that_are_no_layers_have_their_gradients() -> None:
    torch.manual_seed(0)
    stack = nn.Parameter(torch.randn(3, 4, 5))
    model = nn.ParameterDict({"experts": stack})
    choice: dict[str, Any] = {"stacked": "experts", "exclude": "experts[[]1]"}
    lampfast.prune(model, 0.5, **choice)
    with torch.no_grad():
        stack[1, 0] = 0
    kept(model, **choice)
    go_back(stack.sum())
    expected = (stack != 0).float()
    expected[1] = 1
    assert stack.grad is not None
    assert torch.equal(stack.grad, expected)


def test_new_zeros_and_new_weights_count_at_once() -> None:
    model = network()
    lampfast.prune(model, 0.5)
    handle = kept(model)
    backward(model)
    lampfast.prune(model, 0.9)
    assert leaks(model) == 0, "gradients that are there already are masked, too"
    state = handle.state_dict()
    masks = {f"{i}.weight": torch.rand(model[i].weight.shape) < 0.3 for i in (0, 2)}  # type: ignore[arg-type]
    handle.update(masks)
    model.zero_grad()
    backward(model)
    for mask, found in zip(masks.values(), gradients(model), strict=True):
        assert not found[~mask].any()
        assert found[mask].any()
    handle.load_state_dict(state)
    assert not any(
        found[mask & (weight == 0)].any()
        for found, mask, weight in zip(
            gradients(model), masks.values(), matrices(model), strict=True
        )
    )


def test_a_gradient_whose_memory_was_freed() -> None:
    """It has no values that could be masked, and is not written to."""
    model = network()
    lampfast.prune(model, 0.5)
    kept(model)
    backward(model)
    for weight in matrices(model):
        assert weight.grad is not None
        weight.grad.untyped_storage().resize_(0)
    lampfast.prune(model, 0.9)
    assert lampfast.report(model).sparsity == pytest.approx(0.9, abs=1e-3)


def test_dense_gradients_for_a_while() -> None:
    model, plain = network(), network()
    lampfast.prune(model, 0.9)
    plain.load_state_dict(model.state_dict())
    handle = kept(model)
    with handle.dense_gradients(), handle.dense_gradients():
        backward(model)
    backward(plain)
    assert all(map(torch.equal, gradients(model), gradients(plain)))
    backward(model)  # on top of it
    assert leaks(model) == 0
    handle.remove()
    with refused(RuntimeError, "removed", keeps=matrices(model)):
        handle.dense_gradients()


def test_gradients_that_are_there_when_it_begins() -> None:
    model = network()
    lampfast.prune(model, 0.9)
    backward(model)
    assert leaks(model) > 0
    kept(model)
    assert leaks(model) == 0


def test_a_layer_that_is_free_to_train_has_its_gradient() -> None:
    model = network()
    lampfast.prune(model, 0.5, exclude="2.*")
    nn.init.zeros_(matrices(model)[1])
    backward(model)
    with pytest.warns(UserWarning, match="not kept"):
        kept(model)
    assert matrices(model)[1].grad.count_nonzero() > 0  # type: ignore[union-attr]


def test_what_is_trained_only_later() -> None:
    model = network()
    lampfast.prune(model, 0.9)
    optimizer = SGD(model.parameters(), lr=0.1)
    first = matrices(model)[0].requires_grad_(False)
    kept(model, optimizer)
    first.requires_grad_(True)
    backward(model)
    optimizer.step()  # finds it
    optimizer.zero_grad()
    backward(model)
    assert leaks(model) == 0


@pytest.mark.parametrize("what", ["model", "step"])
def test_torch_compile(what: str) -> None:
    model = network()
    lampfast.prune(model, 0.9)
    kept(model)

    def step(x: torch.Tensor) -> None:
        model(x).square().sum().backward()

    x = torch.randn(16, 40)
    if what == "model":
        torch.compile(model, backend="aot_eager")(x).square().sum().backward()
    else:
        torch.compile(step, backend="aot_eager")(x)
    assert leaks(model) == 0
    assert all(found.any() for found in gradients(model))


def test_an_optimizer_that_steps_in_the_backward_pass() -> None:
    """Its hooks, if they are registered later, see masked gradients."""
    model = network()
    lampfast.prune(model, 0.9)
    optimizers = {p: SGD([p], lr=0.1) for p in model.parameters()}
    kept(model, list(optimizers.values()))
    seen = []

    def step(p: torch.Tensor) -> None:
        assert p.grad is not None
        if p.ndim > 1:
            seen.append(int((p.grad[p == 0] != 0).sum()))
        optimizers[p].step()  # type: ignore[index]
        p.grad = None

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)  # type: ignore[no-untyped-call]
    backward(model)
    assert seen == [0, 0]


def test_no_hook_is_left_behind() -> None:
    model = network()
    lampfast.prune(model, 0.9)
    first = matrices(model)[0]
    kept(model).remove()
    _handles.clear()
    assert not first._post_accumulate_grad_hooks
    optimizer = SGD(model.parameters(), lr=0.1)
    keep_zeros(model, optimizer, mask_gradients=True)
    gc.collect()
    assert first._post_accumulate_grad_hooks, "the optimizer holds on to it"
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        backward(other)
        assert leaks(other) > 0, "copies are not watched"
    del optimizer
    gc.collect()
    assert not first._post_accumulate_grad_hooks


def test_a_pruner_masks_gradients_as_it_prunes() -> None:
    model = network()
    optimizer = AdamW(model.parameters(), lr=0.01)
    pruner = Pruner(model, optimizer, linear(0.9, 6), mask_gradients=True)
    for step in range(8):
        backward(model, step)
        assert leaks(model) == 0
        optimizer.step()
        pruner.step()
        assert leaks(model) == 0
        optimizer.zero_grad()
    with pruner.dense_gradients():
        backward(model)
    assert leaks(model) > 0
    pruner.remove()
    with refused(RuntimeError, "removed", keeps=matrices(model)):
        pruner.dense_gradients()


@pytest.mark.parametrize("wrong", [None, 1, "yes", torch.tensor(True)])
def test_what_is_neither_on_nor_off(wrong: Any) -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    with refused(TypeError, "mask_gradients", "True or False", keeps=matrices(model)):
        keep_zeros(model, optimizer, mask_gradients=wrong)
    with refused(TypeError, "mask_gradients", "True or False", keeps=matrices(model)):
        Pruner(model, optimizer, constant(0.5), mask_gradients=wrong)
