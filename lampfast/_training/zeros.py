"""Sparse training: what is zero now stays zero through every step of an optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, cast

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from lampfast import parameters
from lampfast._engine import changes, views
from lampfast._engine.interrupts import Deferred
from lampfast._engine.views import View
from lampfast._training.kept_layers import KeptLayers, trained_addresses
from lampfast.parameters import Model, Patterns

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

_SAME_LAYERS = (
    "choose the same layers with include= and exclude= (of a model that another module wraps, "
    "take the wrapped module both times)"
)


def keep_zeros(
    model: Model,
    optimizers: Optimizer | Sequence[Optimizer],
    *,
    include: Patterns = None,
    exclude: Patterns = None,
) -> KeptZeros:
    """Keep the weights that are zero now at zero through every step of the optimizers.

    After each step the weights that it has moved away from zero are set to +0 in one pass; the
    others are not touched. Momentum, weight decay, foreach and fused steps, closures, gradient
    scaling and torch.compile of the model need nothing else. `lampfast.prune` of the same layers
    adds the new zeros by itself. The weights stay ordinary parameters: nothing is wrapped, and a
    state_dict or a copy of the model is as it would be. The masks take one bit a weight, on the
    layer's device.

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

    Args:
        model: As for `lampfast.prune`, of torch tensors. Tied weights are kept once.
        optimizers: The optimizer that trains the model, or a list of all of them. A step of one
            restores the zeros of the layers that are in its parameter groups at that time, those
            that were added to it later too. So does a step of an optimizer that is made anew,
            for as long as the handle, or one of these optimizers, is held on to.
        include: As for `lampfast.prune`.
        exclude: As for `lampfast.prune`.

    Returns:
        A handle: `remove()` ends it, as leaving it as a context manager does. The optimizers hold
        on to it, too. Copies of the model are not watched, nor are parameters that take the place
        of others.

    Raises:
        TypeError: An optimizer is not a torch.optim.Optimizer, a layer is a numpy array, or the
            model or a layer has a type, dtype or layout that is not pruned.
        ValueError: The optimizers have none of the layers, a layer that requires a gradient is in
            none of them, a pattern matches nothing, or a layer cannot be written.
    """
    given = _checked(optimizers)
    layers = views.layers(parameters.named(model, include, exclude), write=True)
    _check_trained(layers, given)
    return KeptZeros(layers, given)


class KeptZeros:
    """Holds the zeros of a model's layers through its optimizers' steps; `keep_zeros` makes it.

    What is written to the weights between two steps, as by `model.load_state_dict`, is there until
    the next step restores the zeros. A layer that is zero throughout stays so.

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

    def __init__(self, layers: Sequence[View], optimizers: Sequence[Optimizer]) -> None:
        self._kept = KeptLayers(layers, optimizers)
        # torch.compile of a step must not trace the hook, which passes addresses to the engine.
        hook = torch.compiler.disable(  # type: ignore[no-untyped-call]
            partial(_after_step, self._kept)
        )
        self._hooks: list[RemovableHandle] = [
            optimizer.register_step_post_hook(hook) for optimizer in optimizers
        ]
        changes.listen(self._kept)
        _listen_to_every_step()

    def update(self, masks: Mapping[str, torch.Tensor] | None = None) -> None:
        """Record anew: what is zero now, or what masks say, is kept at zero from now on.

        Example:
            >>> import lampfast, torch
            >>> weight = torch.nn.Parameter(torch.tensor([3.0, 0.0, 2.0]))
            >>> kept = lampfast.keep_zeros([weight], torch.optim.SGD([weight]))
            >>> kept.update({"0": torch.tensor([True, True, False])})  # one grows, another goes
            >>> weight.tolist()
            [3.0, 0.0, 0.0]

        Args:
            masks: By layer name a bool tensor of the layer's shape, True where the weight may be
                other than zero, as from `lampfast.masks`; the others are set to zero. A weight
                that grows from zero, as in RigL, is told from a pruned one only by these. None
                for the weights that are not zero now.

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
            _check_masks(masks, [layer.now() for layer in self._kept.layers])
            with Deferred():
                self._kept.set_masks(masks)

    def remove(self) -> None:
        """Let the zeros go: later steps may change them. Once removed it holds nothing."""
        for hook in self._hooks:
            hook.remove()
        changes.stop_listening(self._kept)
        self._hooks, self._kept = [], KeptLayers([])

    def __enter__(self) -> KeptZeros:
        """Nothing to do: the zeros are kept already."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let the zeros go."""
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
            {'0': tensor([9], dtype=torch.uint8)}

        Returns:
            By layer name a uint8 tensor on the CPU with one bit a weight, set where the weight is
            kept: bit i % 8, counted from the lowest, of byte i // 8 is that of the i-th weight in
            row-major order, whatever the layer's memory format. The last byte's other bits are 0.

        Raises:
            ValueError: The shape of a layer has changed since its zeros were recorded.
            RuntimeError: The handle was removed.
        """
        self._check_in_use()
        return self._kept.state()

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over masks, and set to zero what they do not keep.

        Args:
            state: What `state_dict` returned, for layers of the same names and shapes.

        Raises:
            TypeError: It is not a mapping of names to uint8 tensors.
            ValueError: The names are not those of the layers, or a size is wrong.
            RuntimeError: The handle was removed.
        """
        self._check_in_use()
        _check_state(state, [layer.now() for layer in self._kept.layers])
        with Deferred():
            self._kept.load(state)

    def _check_in_use(self) -> None:
        if not self._hooks:
            raise RuntimeError("this handle was removed; call lampfast.keep_zeros again")


# lampfast sets the class's __module__; without this doctest would skip its methods' examples.
__test__ = {"KeptZeros": KeptZeros}


def _after_step(kept: KeptLayers, optimizer: Optimizer, args: object, kwargs: object) -> None:
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
    given = [optimizers] if isinstance(optimizers, Optimizer) else optimizers
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise TypeError(
            f"optimizers is a {type(given).__name__}; pass the torch.optim.Optimizer that trains "
            "the model, or a list of them"
        )
    if not given:
        raise ValueError("optimizers is empty; pass the optimizers that train the model")
    for position, optimizer in enumerate(given):
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optimizers has a {type(optimizer).__name__} at position {position}; pass "
                "instances of torch.optim.Optimizer"
            )
        if not hasattr(optimizer, "_optimizer_step_post_hooks"):
            raise TypeError(
                f"{type(optimizer).__name__} calls no step hooks, as it only wraps an optimizer; "
                "pass the one inside (often its attribute `optimizer`)"
            )
    return list(dict.fromkeys(given))


def _check_trained(layers: Sequence[View], optimizers: Sequence[Optimizer]) -> None:
    """Check that every layer that is trained is trained by the optimizers, which have some."""
    for layer in layers:
        if not isinstance(layer.weight, torch.Tensor):
            raise TypeError(
                f"layer {layer.name!r} is a numpy array, which no optimizer trains; pass torch "
                "tensors, or leave it out with exclude="
            )
    trained = set().union(*map(trained_addresses, optimizers))
    weights = [cast(torch.Tensor, layer.weight) for layer in layers]
    if trained.isdisjoint(weight.data_ptr() for weight in weights):
        raise ValueError(
            f"{' and '.join(type(optimizer).__name__ for optimizer in optimizers)} has none of the "
            "layers; pass the optimizers that train this model, or choose other layers with "
            "include= or exclude="
        )
    for layer, weight in zip(layers, weights, strict=True):
        if weight.requires_grad and weight.data_ptr() not in trained:
            raise ValueError(
                f"layer {layer.name!r} requires a gradient but is in none of the optimizers, so its"
                " zeros would not be kept; pass all optimizers as a list, leave it out with "
                "exclude=, or freeze it with requires_grad_(False)"
            )


def _check_masks(masks: Mapping[str, torch.Tensor], layers: Sequence[View]) -> None:
    views.check_names("masks", masks, layers, _SAME_LAYERS)
    for layer in layers:
        mask, shape = masks[layer.name], tuple(layer.weight.shape)
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
            found = mask.dtype if isinstance(mask, torch.Tensor) else type(mask).__name__
            raise TypeError(f"mask of layer {layer.name!r} is {found}; pass a bool tensor")
        if mask.shape != shape:
            raise ValueError(
                f"mask of layer {layer.name!r} has shape {tuple(mask.shape)}, the layer has shape "
                f"{shape}; pass one value for every weight"
            )


def _check_state(state: Mapping[str, torch.Tensor], layers: Sequence[View]) -> None:
    views.check_names("state", state, layers, _SAME_LAYERS)
    for layer in layers:
        mask, size = state[layer.name], (layer.size + 7) // 8
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.uint8:
            found = mask.dtype if isinstance(mask, torch.Tensor) else type(mask).__name__
            raise TypeError(
                f"state of layer {layer.name!r} is {found}, not a uint8 tensor; pass what "
                "state_dict() returned"
            )
        if mask.shape != (size,):
            raise ValueError(
                f"state of layer {layer.name!r} has shape {tuple(mask.shape)}, but {size} bytes are"
                f" needed for its {layer.size} weights; it was saved for another shape"
            )
