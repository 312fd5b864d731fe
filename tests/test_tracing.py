"""Under torch's tracers and transformations every verb raises, and no memory is touched."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from refusal import refused
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import lampfast

VERBS: dict[str, Callable[[Any], object]] = {
    "prune": lambda model: lampfast.prune(model, 0.5),
    "masks": lambda model: lampfast.masks(model, 0.5),
    "scores": lampfast.scores,
    "report": lampfast.report,
    "keep_zeros": lambda model: lampfast.keep_zeros(model, torch.optim.SGD(model)),
}
Function = Callable[[torch.Tensor], torch.Tensor]
TRACERS: dict[str, tuple[str, Callable[[Function, torch.Tensor], object]]] = {
    "vmap": ("torch.func", lambda f, x: torch.vmap(f)(x)),
    "grad": ("torch.func", lambda f, x: torch.func.grad(f)(x)),
    "jvp": ("torch.func", lambda f, x: torch.func.jvp(f, (x,), (x,))),
    "functionalize": ("torch.func", lambda f, x: torch.func.functionalize(f)(x)),
    "jit.trace": ("torch.jit.trace", lambda f, x: torch.jit.trace(f, (x,))),  # type: ignore[no-untyped-call]
    "make_fx": ("make_fx", lambda f, x: make_fx(f)(x)),
    "make_fx fake": ("make_fx", lambda f, x: make_fx(f, tracing_mode="fake")(x)),
    "make_fx symbolic": ("make_fx", lambda f, x: make_fx(f, tracing_mode="symbolic")(x)),
    "make_fx pre_dispatch": ("make_fx", lambda f, x: make_fx(f, pre_dispatch=True)(x)),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit
@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
@pytest.mark.parametrize(("tracer", "trace"), TRACERS.values(), ids=TRACERS)
def test_tracers(
    tracer: str, trace: Callable[[Function, torch.Tensor], object], verb: Callable[[Any], object]
) -> None:
    for numel in (4, 0):
        x, plain = torch.randn(numel), torch.randn(numel)

        def of_what_is_traced(x: torch.Tensor) -> torch.Tensor:
            verb([x])
            return x.sum()

        def of_something_else(x: torch.Tensor) -> torch.Tensor:
            verb([plain])  # noqa: B023  # it is called in this round
            return x.sum()

        for function in (of_what_is_traced, of_something_else):
            with refused(RuntimeError, tracer, "call it outside", keeps=[x, plain]):
                trace(function, x.expand(2, numel) if trace is TRACERS["vmap"][1] else x)


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_fake_tensors(verb: Callable[[Any], object]) -> None:
    weight = torch.randn(4)
    words = ("FakeTensorMode is active", "outside of it")
    with refused(TypeError, *words, keeps=[weight]), FakeTensorMode(allow_non_fake_inputs=True):
        verb([weight])


def test_a_handle_under_fake_tensors() -> None:
    weight = torch.randn(4)
    kept = lampfast.keep_zeros([weight], torch.optim.SGD([weight]))
    state = kept.state_dict()
    for call in (kept.update, kept.state_dict, lambda: kept.load_state_dict(state)):
        with (
            refused(TypeError, "FakeTensorMode is active", keeps=[weight]),
            FakeTensorMode(allow_non_fake_inputs=True),
        ):
            call()


def test_tensors_that_have_left_their_transformation() -> None:
    left: list[torch.Tensor] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        left.append(x)
        return x

    torch.vmap(keep)(torch.ones(2, 3))
    with refused(TypeError, "layer '0' has no memory of its own", "vmap", keeps=[]):
        lampfast.masks(left, 0.5)


def test_modes_that_only_watch() -> None:
    with FlopCounterMode(display=False):
        assert lampfast.masks([torch.tensor([1.0, 2.0])], 1)["0"].tolist() == [False, True]


@pytest.mark.filterwarnings("ignore:Dynamo does not know")
@pytest.mark.skipif(
    torch.__version__ < "2.5", reason="torch 2.4's compiler fails at Python's match statement"
)
def test_compiled_functions_call_it_as_it_is() -> None:
    weight = torch.tensor([1.0, 2.0])
    compiled = torch.compile(lambda: lampfast.masks([weight], 1)["0"] * 2, backend="eager")
    assert compiled().tolist() == [0, 2]
    with pytest.raises(Exception, match=r"lampfast|skipped|graph break"):
        torch.compile(lambda: lampfast.masks([weight], 1), backend="eager", fullgraph=True)()
