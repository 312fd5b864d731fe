"""Refuses to work where torch traces or transforms a program instead of running it."""

from collections.abc import Callable

import torch
from torch._C import (
    _functorch,
    _get_dispatch_mode,
    _get_tracing_state,
    _len_torch_dispatch_stack,
    _TorchDispatchModeKey,
)
from torch._ops import _get_dispatch_mode_pre_dispatch, _len_torch_dispatch_stack_pre_dispatch

_before_dispatch: Callable[[], int] = _len_torch_dispatch_stack_pre_dispatch
_mode_before_dispatch: Callable[[_TorchDispatchModeKey], object] = _get_dispatch_mode_pre_dispatch
_WAY_OUT = "lampfast reads and writes memory, which no trace can record; call it outside of that"


def refuse() -> None:
    """Check that tensors made from here on have memory, and that what is done is really done.

    Raises:
        TypeError: A FakeTensorMode is active.
        RuntimeError: torch.jit.trace, make_fx or a transformation of torch.func is at work.
    """
    if _functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            f"torch.func is transforming this call (vmap, grad, jvp, functionalize); {_WAY_OUT}"
        )
    if _get_tracing_state() is not None:
        raise RuntimeError(f"torch.jit.trace is tracing this call; {_WAY_OUT}")
    if _len_torch_dispatch_stack() or _before_dispatch():
        _refuse_modes()


def _refuse_modes() -> None:
    """Check the modes that see every operation of torch; most of them only watch."""
    proxy = _TorchDispatchModeKey.PROXY
    if _get_dispatch_mode(proxy) is not None or _mode_before_dispatch(proxy) is not None:
        raise RuntimeError(f"make_fx is tracing this call; {_WAY_OUT}")
    if type(torch.empty(0)) is not torch.Tensor:
        raise TypeError(
            "a FakeTensorMode is active, under which new tensors are FakeTensors that have no "
            "memory; call lampfast outside of it"
        )
