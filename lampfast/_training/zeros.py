"""Sparse training: pruned weights stay at zero through every step of an optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from types import TracebackType
from typing import NoReturn, TypeGuard, cast

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from lampfast import _arguments, parameters
from lampfast._engine import changes, packed_masks, placed, shards, tracing, views
from lampfast._engine.interrupts import Deferred
from lampfast._engine.stacks import Layers, Stack
from lampfast._engine.views import View
from lampfast._training import averages, hooks, known, regrowth
from lampfast._training import given as given_masks
from lampfast._training.averages import Copies
from lampfast._training.kept_layers import KeptLayers, is_zero
from lampfast._training.trained import TrainedLayers
from lampfast.parameters import Model, Patterns

FROZEN = (
    "will stay so, since what is zero now is kept; if it is to be trained, leave it out with "
    "exclude=, or do this after its first optimizer step"
)


def keep_zeros(
    model: Model,
    optimizers: Optimizer | Sequence[Optimizer],
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    stacked: Patterns = None,
    copies: Copies = None,
    masks: Mapping[str, torch.Tensor] | None = None,
    mask_gradients: bool = False,
) -> KeptZeros:
    """Keep pruned weights, those that are zero now, at zero through every step of the optimizers.

    After each step, pruned weights that it has moved away from zero are set to +0, in one pass;
    the others are not touched. This works with momentum, weight decay, foreach and fused steps,
    closures, gradient scaling and torch.compile. A later `lampfast.prune` of the same layers adds
    its zeros. The weights stay ordinary parameters: nothing is wrapped, and a state_dict or a copy
    of the model is as it would be. The masks take one bit a weight, on the layer's device.

    Example:
        >>> import lampfast, torch
        >>> model = torch.nn.Linear(64, 10)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> report = lampfast.prune(model, 0.9)
        >>> kept = lampfast.keep_zeros(model, optimizer)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(8, 64)).square().mean().backward()
        ...     optimizer.step()
        >>> lampfast.report(model).sparsity
        0.9

    A layer that is all zero may have been pruned to that, or start that way, as the B of LoRA does.
    It is kept at zero, with a warning that names it. There are two exceptions: it is free to train,
    with a warning, if this process has pruned other layers and not this one; and where `rewind` has
    put zeros back in this process, only the weights that had been pruned are kept at zero.

    Args:
        model: A module, a mapping of names to torch tensors or numpy arrays, a sequence of either,
            or (module, "weight") pairs, as `lampfast.prune` describes them, without arrays. Tied
            weights are kept once. A layer may be a slice of what is trained, such as one expert of
            a stacked parameter.
        optimizers: The optimizer that trains the model, or a list of all of them. After a step, the
            zeros of the layers among its parameters are restored, also of parameters that were
            added later; the same after eval() and train() of schedule-free optimizers. Pass a
            wrapper that writes weights itself, such as Lookahead, instead of the optimizer inside;
            of wrappers that only forward steps, such as accelerate's and Lightning's, pass either.
            Optimizers that are made later restore the zeros too, as long as the handle or one of
            these optimizers is alive, but not after what a wrapper of theirs writes: see
            `KeptZeros.restore`.
        include: Glob pattern or patterns over the parameters' names: these are the layers, in the
            place of those by default.
        exclude: Glob pattern or patterns over the same names: these are left out.
        stacked: Glob pattern or patterns over the names of parameters that hold several layers, one
            in each slice along the first dimension. Masks go by parameter, with the zeros of all
            its slices.
        copies: A module that is a copy of the model, such as its average in an AveragedModel or
            timm's ModelEma, or a list of copies. They get the model's zeros at once and at every
            step, pruning and `restore`. That is one more pass over each copy, about half the cost
            of averaging it. When they are updated makes no difference: an average of zeros is zero.
            Layers are found by their names, without the prefixes of wrappers. For any other copy,
            pass a mapping of names to tensors, which may have only some of the layers.
        masks: Which weights are kept: by parameter name a bool tensor of its shape. Without masks,
            those that are not zero now. The others are set to zero. Weights may grow again by
            `KeptZeros.update`.
        mask_gradients: Whether gradients of pruned weights are set to zero too, as a backward pass
            accumulates them. Needed where one number is computed from many gradients: the norm by
            which they are clipped, a norm that is logged, and the updates of Adafactor, Muon, LAMB
            and the like. SGD, Adam and others that treat each weight by itself do not need it.
            Parameters that begin to train later are masked from their first step on. It works under
            DistributedDataParallel, unless a communication hook such as PowerSGD's only
            approximates the average.

    Returns:
        A handle: `remove()` ends it, as leaving it as a context manager does. The optimizers hold
        on to it, too. Other copies of the model are not watched, nor are parameters that take the
        place of others.

    Raises:
        TypeError: An optimizer is not a torch.optim.Optimizer nor used as one, a layer is a numpy
            array, the model or a layer has a type, dtype or layout that is not pruned, or the masks
            are no mapping of names to bool tensors.
        ValueError: The optimizers have none of the layers, unless all are frozen parameters; a
            layer that requires a gradient is in none of them, a pattern matches nothing, a layer
            cannot be written; a copy lacks a layer, has it in another shape, or is no copy, as it
            shares memory with the model; or the masks have other names or shapes, or gradients are
            to be masked and a parameter has part of a layer only.

    Source:
        Evci, Gale, Menick, Castro, Elsen: Rigging the Lottery, ICML 2020, arXiv 1911.11134, for
        masks that change while a model trains.
    """
    found = parameters.find(model, include, exclude, stacked).layers
    averages.warn_of_those_inside(model, found.wholes, copies)
    judge = _judge_all_zero if masks is None else None  # masks tell what is free to train
    return held(found, optimizers, masks, copies, mask_gradients=mask_gradients, judge=judge)


def _check_sharded(found: Layers) -> None:
    """Check that nothing is asked of sharded layers that is told of whole ones only."""
    for name, weight in found.wholes.items():
        if shards.is_sharded(weight) and name in found.partial():
            raise ValueError(
                f"parameter {name!r} is a DTensor of which some slices are no layers; choose all "
                "of its slices or none"
            )


def held(
    found: Layers,
    optimizers: Optimizer | Sequence[Optimizer],
    masks: Mapping[str, torch.Tensor] | None = None,
    copies: Copies = None,
    *,
    mask_gradients: bool = False,
    judge: Callable[[KeptLayers, Layers], None] | None = None,
) -> KeptZeros:
    """What `keep_zeros` returns, for a model's layers; what is all zero is left to `judge`."""
    _arguments.flag("mask_gradients", mask_gradients)
    given = _checked(optimizers)
    _check_sharded(found)
    layers = views.layers({it: shards.part(w) for it, w in found.wholes.items()}, write=True)
    trained = _checked_trained(layers, given)
    of_copies = averages.layers(copies, layers, found.wholes)
    wholes = {layer.name: cast(torch.Tensor, found.wholes[layer.name]) for layer in layers}
    if masks is not None:
        masks = given_masks.masks(masks, wholes)
    kept = KeptZeros(wholes, layers, given, trained, found.partial(), of_copies)
    try:
        if judge is not None:
            judge(kept._kept, found)
        if mask_gradients:
            kept._kept.mask_gradients(given)
        with Deferred():
            if masks is not None:
                kept._kept.set_masks(masks)
            kept._kept.restore_copies()
    except BaseException:  # a warning that is made an error, say
        kept.remove()
        raise
    return kept


def _judge_all_zero(kept: KeptLayers, found: Layers) -> None:
    """Let go of layers that are all zero and known not to be pruned so; warn of all of them."""
    slices, all_zero = _zero_slices(kept, found), _all_zero(kept, found)
    if not all_zero and not slices:
        return
    weights = {layer.view.name: layer.weight for layer in kept.layers}
    is_known = any(map(known.layers.was_pruned, weights.values()))
    frozen, free = slices, []
    for position in all_zero:
        name = kept.layers[position].view.name
        remaining = known.layers.mask(weights[name])
        if remaining is not None:
            kept.let_go(position, remaining)
        elif is_known and not known.layers.was_pruned(weights[name]):
            kept.let_go(position, None)
            free.append(name)
        else:
            frozen.append(name)
    if frozen:
        warnings.warn(f"{listed(frozen)} zero throughout, and {FROZEN}", stacklevel=4)
    if free:
        warnings.warn(
            f"{listed(free)} zero throughout without having been pruned, as the others have been "
            "in this process, so these zeros are not kept; where they should be, call update() on "
            "the handle",
            stacklevel=4,
        )


def _all_zero(kept: KeptLayers, found: Layers) -> list[int]:
    """Positions of the layers that are all zero here; of sharded ones, on all ranks."""
    if (ranks := shards.ranks_of(found.wholes)) is None:
        return kept.all_zero
    remain = ranks.anywhere([bool(layer.mask.any()) for layer in kept.layers])
    return [position for position in kept.all_zero if not remain[position]]


def _zero_slices(kept: KeptLayers, found: Layers) -> list[str]:
    """The slices that are all zero of parameters that are not, which are held whole."""
    if not found.stacks:
        return []
    names = {layer.view.name for layer in kept.layers}
    names -= {kept.layers[position].view.name for position in kept.all_zero}
    return [
        layer
        for name, stack in found.stacks.items()
        if name in names
        for layer, part in stack.cut(name, found.wholes[name])
        if isinstance(part, torch.Tensor) and part.numel() and is_zero(part)
    ]


def listed(names: Sequence[str]) -> str:
    """The first of some layers' names, as the subject of a sentence, with its verb."""
    if len(names) == 1:
        return f"layer {names[0]!r} is"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"layers {', '.join(map(repr, names[:5]))}{more} are"


class KeptZeros:
    """Keeps pruned weights at zero through the steps of optimizers; `keep_zeros` makes it.

    What is written to the weights between two steps, as by `model.load_state_dict`, is there until
    the next step, or `restore`, restores the zeros.

    A layer's weights may move between steps, as by `model.half()`, `model.to(device)` or
    `model.to(memory_format=...)`: the mask goes with them. Only a change of its shape is an error,
    at the next step. Layers on devices without an engine are kept by torch's operations there, with
    masks of one byte a weight.

    Example:
        >>> import lampfast, torch
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 0.0]))
        >>> optimizer = torch.optim.SGD([weight], lr=1.0)
        >>> with lampfast.keep_zeros([weight], optimizer):
        ...     weight.sum().backward()
        ...     optimizer.step()
        >>> weight.tolist()
        [2.0, 0.0]
    """

    def __init__(
        self,
        wholes: Mapping[str, torch.Tensor],
        layers: Sequence[View],
        optimizers: Sequence[Optimizer],
        trained: TrainedLayers,
        partly: Mapping[str, Stack],
        copies: Sequence[Sequence[View]] = (),
    ) -> None:
        self._kept = KeptLayers(layers, optimizers, trained, partly, copies)
        self._wholes = wholes
        self._optimizers = list(optimizers)
        self._hooks = [
            undo
            for optimizer in optimizers
            for undo in hooks.after_writes(optimizer, partial(_after_writes, self._kept))
        ]
        changes.listen(self._kept)
        _listen_to_every_step()

    def update(self, masks: Mapping[str, torch.Tensor] | None = None) -> None:
        """Record anew: what is zero now, or what masks say, is kept at zero from now on.

        By masks, weights may grow that were pruned before. What the optimizers given to
        `keep_zeros` hold for them, one value a weight as momentum is, starts at zero then.

        Example:
            >>> import lampfast, torch
            >>> weight = torch.nn.Parameter(torch.tensor([3.0, 0.0, 2.0]))
            >>> kept = lampfast.keep_zeros([weight], torch.optim.SGD([weight]))
            >>> kept.update({"0": torch.tensor([True, True, False])})  # one grows, another goes
            >>> weight.tolist()
            [3.0, 0.0, 0.0]

        Args:
            masks: By parameter name a bool tensor of its shape, True where the weight may be
                other than zero, as from `lampfast.masks`; the others are set to zero. A weight
                that grows, as in RigL and SET, is zero until the next step, so that only these
                tell it from a pruned one. None for the weights that are not zero now.

        Raises:
            TypeError: The masks are not a mapping of names to bool tensors, or a layer is no
                longer one that can be pruned.
            ValueError: The names or shapes are not those of the layers, or a layer can no longer
                be written.
            RuntimeError: The handle was removed.
        """
        self._check_in_use()
        if masks is None:
            self._kept.update()
        else:
            self._take(masks)

    def _take(self, masks: Mapping[str, torch.Tensor]) -> None:
        """Keep what masks say from now on."""
        masks = self._checked_masks(masks)
        stale = regrowth.stale(self._kept.layers, masks, self._optimizers, self._wholes)
        with Deferred():
            self._kept.set_masks(masks)
            regrowth.forget(stale)

    def _checked_masks(self, masks: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return given_masks.masks(masks, self._wholes)

    def dense_gradients(self) -> AbstractContextManager[None]:
        """Leave the gradients that come meanwhile whole, those of pruned weights too.

        Of use with mask_gradients=True, where RigL and others choose by gradients what grows. The
        next `update` masks them by the new masks, and the next backward pass those of its own.

        Example:
            >>> import lampfast, torch
            >>> weight = torch.nn.Parameter(torch.tensor([3.0, 0.0]))
            >>> optimizer = torch.optim.SGD([weight])
            >>> kept = lampfast.keep_zeros([weight], optimizer, mask_gradients=True)
            >>> with kept.dense_gradients():
            ...     weight.sum().backward()
            >>> weight.grad
            tensor([1., 1.])
            >>> kept.update({"0": torch.tensor([False, True])})
            >>> weight.grad
            tensor([0., 1.])

        Raises:
            RuntimeError: The handle was removed.
        """
        self._check_in_use()
        return self._kept.dense_gradients()

    def restore(self) -> None:
        """Restore the zeros now, after something other than an optimizer's step has written.

        Steps of optimizers do it by themselves, and so do eval() and train() of schedule-free ones.
        Call it where weights are written in other ways, as by an optimizer that only wraps another
        one and is not told of here, or by `load_state_dict`.

        Example:
            >>> import lampfast, torch
            >>> weight = torch.nn.Parameter(torch.tensor([3.0, 0.0]))
            >>> kept = lampfast.keep_zeros([weight], torch.optim.SGD([weight]))
            >>> with torch.no_grad():
            ...     _ = weight.add_(1.0)
            >>> kept.restore()
            >>> weight.tolist()
            [4.0, 0.0]

        Raises:
            ValueError: The shape of a layer has changed since its zeros were recorded.
            RuntimeError: The handle was removed.
        """
        self._check_in_use()
        with Deferred():
            self._kept.restore_all()

    def remove(self) -> None:
        """Stop keeping zeros: later steps may change them. A removed handle holds nothing."""
        for undo in reversed(self._hooks):
            undo()
        changes.stop_listening(self._kept)
        if self._kept.gradients is not None:
            self._kept.gradients.remove()
        self._hooks, self._optimizers, self._kept, self._wholes = [], [], KeptLayers([]), {}

    def __enter__(self) -> KeptZeros:
        """Nothing to do: the zeros are kept already."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop keeping zeros."""
        self.remove()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a handle of keep_zeros cannot be copied: hooks of optimizers stay behind; call "
            "keep_zeros for the copies of the model and its optimizers"
        )

    def __repr__(self) -> str:
        layers = self._kept.layers
        return f"KeptZeros(numel={sum(layer.view.size for layer in layers)}, layers={len(layers)})"

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The masks, to be saved beside the model's and the optimizers' state.

        Example:
            >>> import lampfast, torch
            >>> weight = torch.nn.Parameter(torch.tensor([3.0, 0.0, 0.0, 1.0]))
            >>> lampfast.keep_zeros([weight], torch.optim.SGD([weight])).state_dict()
            {'0': tensor([ True, False, False,  True])}

        Returns:
            By parameter name a bool tensor of its shape on the CPU, True where the weight is kept;
            of a DTensor a DTensor that is placed as it is. So torch.distributed.checkpoint saves
            it, and loads it for any number of processes and any placements.

        Raises:
            ValueError: The shape of a layer has changed since its zeros were recorded.
            RuntimeError: The handle was removed.
        """
        self._check_in_use()
        return {
            name: placed.like(self._wholes[name], mask) for name, mask in self._kept.masks().items()
        }

    def _packed_state(self) -> dict[str, torch.Tensor]:
        """The masks of whole parameters at one bit a weight, of which `load_state_dict` knows too.

        Of what is sharded, one parameter at a time is gathered by all ranks.
        """
        return {
            name: torch.from_numpy(packed_masks.packed(placed.whole(mask).cpu().numpy()))
            for name, mask in self.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over masks, and set to zero what they do not keep.

        Args:
            state: What `state_dict` returned, for layers of the same names and shapes, which may be
                sharded in another way, or only there or here. Where they are sharded here, all
                ranks make the call; masks that are not placed as they are are gathered, one at a
                time. States that earlier versions saved at one bit a weight will do, too.

        Raises:
            TypeError: It is not a mapping of names to bool tensors.
            ValueError: The names are not those of the layers, or a shape is wrong.
            RuntimeError: The handle was removed; or another rank could not take its state, so that
                no rank has.
        """
        self._check_in_use()
        masks = given_masks.masks(state, self._wholes, is_state=True)
        with Deferred():
            self._kept.set_masks(masks)

    def _check_in_use(self) -> None:
        if not self._hooks:
            raise RuntimeError("this handle was removed; call lampfast.keep_zeros again")
        tracing.refuse()


# lampfast sets the class's __module__; without this doctest would skip its methods' examples.
__test__ = {"KeptZeros": KeptZeros}


def _after_writes(kept: KeptLayers, optimizer: Optimizer) -> None:
    with Deferred():
        kept.restore(optimizer)


@cache
def _listen_to_every_step() -> None:
    """Tell all handles of the steps of any optimizer, also of those made after them."""
    register_optimizer_step_pre_hook(
        torch.compiler.disable(_before_any_step)  # type: ignore[no-untyped-call]
    )
    register_optimizer_step_post_hook(
        torch.compiler.disable(_after_any_step)  # type: ignore[no-untyped-call]
    )


def _before_any_step(optimizer: Optimizer, args: object, kwargs: object) -> None:
    for listener in changes.listening():
        listener.stepping(optimizer)


def _after_any_step(optimizer: Optimizer, args: object, kwargs: object) -> None:
    with Deferred():
        changes.tell(lambda listener: listener.stepped(optimizer))


def _checked(optimizers: Optimizer | Sequence[Optimizer]) -> list[Optimizer]:
    """The distinct optimizers, each of which calls step hooks."""
    given = [optimizers] if _is_optimizer(optimizers) else optimizers
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise TypeError(
            f"optimizers is a {type(given).__name__}; pass the torch.optim.Optimizer that trains "
            "the model, or a list of them"
        )
    if not given:
        raise ValueError("optimizers is empty; pass the optimizers that train the model")
    for position, optimizer in enumerate(given):
        if not _is_optimizer(optimizer):
            raise TypeError(
                f"optimizers has a {type(optimizer).__name__} at position {position}; pass "
                "instances of torch.optim.Optimizer, or of what wraps one and has its param_groups"
            )
    return list(dict.fromkeys(map(hooks.unwrapped, given)))


def _is_optimizer(given: object) -> TypeGuard[Optimizer]:
    """Whether something is an optimizer, or wraps one and is used as one."""
    is_like_one = hasattr(given, "param_groups") and hasattr(given, "step")
    return not isinstance(given, type) and (isinstance(given, Optimizer) or is_like_one)


def _checked_trained(layers: Sequence[View], optimizers: Sequence[Optimizer]) -> TrainedLayers:
    """What the optimizers train, if that is some layers and every one that is trained at all."""
    for layer in layers:
        if not isinstance(layer.weight, torch.Tensor):
            raise TypeError(
                f"layer {layer.name!r} is a numpy array, which no optimizer trains; pass torch "
                "tensors, or leave it out with exclude="
            )
    trained = TrainedLayers(layers)
    positions = set().union(*(found.positions for found in trained.first(optimizers)))
    if not positions and not _are_frozen(layers):
        raise ValueError(
            f"{' and '.join(type(optimizer).__name__ for optimizer in optimizers)} has none of the "
            "layers; pass the optimizers that train this model, or choose other layers with "
            "include= or exclude="
        )
    for position, layer in enumerate(layers):
        if cast(torch.Tensor, layer.weight).requires_grad and position not in positions:
            raise ValueError(
                f"layer {layer.name!r} requires a gradient but is in none of the optimizers, so its"
                " zeros would not be kept; pass all optimizers as a list, leave it out with "
                "exclude=, or freeze it with requires_grad_(False)"
            )
    return trained


def _are_frozen(layers: Sequence[View]) -> bool:
    """Whether layers are a model's, such as the base below adapters, that is not trained itself."""
    weights = [layer.weight for layer in layers]
    return bool(weights) and all(
        isinstance(weight, torch.nn.Parameter) and not weight.requires_grad for weight in weights
    )
