"""Calls a function after an optimizer has written weights: by torch's step hooks where it has them.

Some wrappers of optimizers, as of Lookahead, have a step that torch's hooks do not know of; and
schedule-free optimizers write weights in eval() and train() too. There the methods of the one
optimizer are replaced by ones that call the function at their end.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from types import MethodType
from typing import Any, TypeAlias, cast

import torch
from torch.optim import Optimizer

After: TypeAlias = Callable[[Optimizer], None]
Undo: TypeAlias = Callable[[], None]

_HANDING_ON = {  # classes of trainers, which lampfast does not import, with their packages
    "AcceleratedOptimizer": ("accelerate",),
    "LightningOptimizer": ("lightning", "pytorch_lightning"),
    "_FabricOptimizer": ("lightning", "lightning_fabric"),
}


def after_writes(optimizer: Optimizer, call: After) -> list[Undo]:
    """Call a function after all of an optimizer's methods that are known to write weights.

    Args:
        optimizer: Any.
        call: Is given the optimizer.

    Returns:
        What ends it, to be called in reverse order.
    """
    if has_hooked_step(optimizer):
        undo: list[Undo] = [optimizer.register_step_post_hook(_as_hook(call)).remove]
    else:
        undo = [_after(optimizer, "step", call)]
    if all(callable(getattr(optimizer, name, None)) for name in ("eval", "train")):
        undo += [_after(optimizer, name, call) for name in ("eval", "train")]
    return undo


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """The optimizer that writes, where a trainer's class around it only hands its steps on.

    An inner one whose step torch's hooks do not know of stays wrapped: accelerate and a GradScaler
    put its method back, and with it undo what `after_writes` has done to it.
    """
    if not any(_is_from(optimizer, name) for name in _HANDING_ON):
        return optimizer
    inner = unwrapped(cast(Any, optimizer).optimizer)
    return inner if has_hooked_step(inner) else optimizer


def accumulation(optimizers: Optimizer | Sequence[Optimizer]) -> Callable[[], bool]:
    """What tells whether steps are left out now, as accelerate does while gradients accumulate."""
    given = optimizers if isinstance(optimizers, Sequence) else [optimizers]
    states = [
        cast(Any, optimizer).gradient_state
        for optimizer in given
        if _is_from(optimizer, "AcceleratedOptimizer")
    ]
    return lambda: any(not state.sync_gradients for state in states)


def has_hooked_step(optimizer: Optimizer) -> bool:
    """Whether torch calls hooks after the step of an optimizer, as it does where it set it up."""
    has_hooks = hasattr(optimizer, "_optimizer_step_post_hooks")
    return has_hooks and getattr(type(optimizer).step, "hooked", False)


def _is_from(optimizer: Optimizer, name: str) -> bool:
    """Whether an optimizer is an instance of the class of that name in `_HANDING_ON`."""
    return any(
        base.__name__ == name and base.__module__.partition(".")[0] in _HANDING_ON[name]
        for base in type(optimizer).__mro__
    )


def _as_hook(call: After) -> Callable[[Optimizer, Any, Any], None]:
    def hook(optimizer: Optimizer, args: object, kwargs: object) -> None:
        call(optimizer)

    # torch.compile of a step must not trace the call, which passes addresses to the engine.
    return torch.compiler.disable(hook)  # type: ignore[no-any-return, no-untyped-call]


def _after(optimizer: Optimizer, name: str, call: After) -> Undo:
    """Call a function after a method of one optimizer; schedulers of learning rates do likewise."""
    before = vars(optimizer).get(name)
    is_on = True

    @wraps(getattr(type(optimizer), name) if before is None else before)
    def method(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        inner = MethodType(getattr(type(self), name), self) if before is None else before
        result = inner(*args, **kwargs)
        if is_on:
            call(self)
        return result

    bound = MethodType(method, optimizer)  # schedulers, and copies of the optimizer, need a method
    setattr(optimizer, name, bound)

    def undo() -> None:
        nonlocal is_on
        is_on = False
        if vars(optimizer).get(name) is bound:  # else another one wraps it by now
            if before is None:
                delattr(optimizer, name)
            else:
                setattr(optimizer, name, before)

    return undo
