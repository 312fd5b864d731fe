"""Wrong values for every argument of every public callable: an error of ours that names it.

A row of `CALLS` is a callable with good arguments, made anew for each call. Every argument is
replaced by every value of `VALUES` in turn. What is not among the good ones of `GOOD` has to raise
an error of ours, whose message names the argument or the layer, and change no weight.
"""

import inspect
import re
import tempfile
import traceback
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.optim import SGD

import lampfast
from lampfast import checkpoints, methods, schedules, torch_prune

PACKAGE = str(Path(lampfast.__file__).parent)


class _Hollow:
    """Has no attribute, and no words for itself."""

    def __repr__(self) -> str:
        raise AssertionError("an error has to do without")


def _nothing(*_: object, **__: object) -> None:
    """A function that gives nothing."""


VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "0": lambda: 0,
    "-1": lambda: -1,
    "2**70": lambda: 2**70,
    "-0.5": lambda: -0.5,
    "0.5": lambda: 0.5,
    "1.5": lambda: 1.5,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "1j": lambda: 1j,
    "Decimal": lambda: Decimal("0.5"),
    "Fraction": lambda: Fraction(3, 2),
    "empty str": lambda: "",
    "str": lambda: "no such name",
    "bytes": lambda: b"weight",
    "bytearray": lambda: bytearray(3),
    "memoryview": lambda: memoryview(bytes(4)),
    "[]": lambda: [],
    "[1]": lambda: [1],
    "[None]": lambda: [None],
    "['x']": lambda: ["x"],
    "()": lambda: (),
    "{}": dict,
    "{'a': 1}": lambda: {"a": 1},
    "{1: 2}": lambda: {1: 2},
    "set": lambda: {"x"},
    "range": lambda: range(3),
    "generator": lambda: (number for number in range(3)),
    "Path": lambda: Path("model.pt"),
    "class": lambda: int,
    "module class": lambda: nn.Linear,
    "function": lambda: _nothing,
    "object": _Hollow,
    "error": lambda: ValueError("x"),
    "Ellipsis": lambda: ...,
    "numpy scalar": lambda: np.float64(7.5),
    "numpy array": lambda: np.ones(3),
    "numpy strs": lambda: np.array(["x"]),
    "0-d tensor": lambda: torch.tensor(7.5),
    "tensor": lambda: torch.ones(2),
    "int tensor": lambda: torch.ones(2, dtype=torch.int64),
    "meta tensor": lambda: torch.ones(2, device="meta"),
    "sparse tensor": lambda: torch.eye(2).to_sparse(),
    "[nan tensor]": lambda: [torch.tensor([float("nan")])],
    "{'fc': meta tensor}": lambda: {"fc.weight": torch.ones(3, 4, device="meta")},
    "module": lambda: nn.ReLU(),
    "lazy module": lambda: nn.LazyLinear(3),
    "optimizer": lambda: SGD([nn.Parameter(torch.ones(2))]),
    "device": lambda: torch.device("cpu"),
    "dtype": lambda: torch.float32,
}


class Net(nn.Module):
    """A model with one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)


class Call:
    """A callable with good arguments, and the weights that it must not change when it raises."""

    def __init__(self, function: Callable[..., Any], net: Net, **arguments: Any) -> None:
        self.function, self.net, self.arguments = function, net, arguments


def _call(make: Callable[..., Callable[..., Any]], **good: Any) -> Callable[[], Call]:
    """A row: what makes the callable from the net, and its other arguments from it."""

    def row() -> Call:
        torch.manual_seed(0)
        net = Net()
        optimizer = SGD(net.parameters(), lr=0.1)
        arguments = {
            name: value(net, optimizer) if inspect.isfunction(value) else value
            for name, value in good.items()
        }
        return Call(make(net, optimizer), net, **arguments)

    return row


def _plain(function: Callable[..., Any]) -> Callable[..., Callable[..., Any]]:
    return lambda net, optimizer: function


def _model(net: Net, optimizer: SGD) -> Any:
    return net


def _optimizer(net: Net, optimizer: SGD) -> Any:
    return optimizer


def _masks(net: Net, optimizer: SGD) -> Any:
    return lampfast.masks(net, 0.5)


def _importance(net: Net, optimizer: SGD) -> Any:
    return {"fc.weight": torch.ones(3, 4)}


def _pair(net: Net, optimizer: SGD) -> Any:
    return [(net.fc, "weight")]


def _fc(net: Net, optimizer: SGD) -> Any:
    return net.fc


_CHOICE: dict[str, Any] = {"include": None, "exclude": None, "stacked": None}
_PLAN: dict[str, Any] = {
    **_CHOICE,
    "method": "lamp",
    "pattern": None,
    "dim": None,
    "block": None,
    "importance": _importance,
}


_RANKS: dict[str, Any] = {**_PLAN, "group": None}


CHECKPOINT = Path(tempfile.mkdtemp()) / "model.safetensors"
IMPORTANCE = CHECKPOINT.with_name("importance.safetensors")


def _checkpoint(net: Net, optimizer: SGD) -> Any:
    if not CHECKPOINT.exists():
        safetensors.torch.save_file(net.state_dict(), CHECKPOINT)
        safetensors.torch.save_file({"fc.weight": torch.ones(3, 4)}, IMPORTANCE)
    return CHECKPOINT


def _pruner(net: Net, optimizer: SGD) -> lampfast.Pruner:
    return lampfast.Pruner(net, optimizer, schedules.constant(0.5))


CALLS: dict[str, Callable[[], Call]] = {
    "prune": _call(_plain(lampfast.prune), model=_model, sparsity=0.5, **_RANKS),
    "masks": _call(_plain(lampfast.masks), model=_model, sparsity=0.5, out=_masks, **_RANKS),
    "scores": _call(_plain(lampfast.scores), model=_model, importance=_importance, **_CHOICE),
    "report": _call(_plain(lampfast.report), model=_model, sparsity=0.5, **_RANKS),
    "layerwise_sparsity": _call(
        _plain(lampfast.layerwise_sparsity), model=_model, sparsity=0.5, **_RANKS
    ),
    "wanda": _call(
        _plain(lampfast.importance.wanda), model=_model, batches=[torch.ones(2, 4)], **_CHOICE
    ),
    "rewind": _call(
        _plain(lampfast.rewind),
        model=_model,
        saved_state=lambda net, _: Net().state_dict(),
        leave=None,
        **_CHOICE,
    ),
    "keep_zeros": _call(
        _plain(lampfast.keep_zeros),
        model=_model,
        optimizers=_optimizer,
        copies=None,
        masks=_masks,
        mask_gradients=True,
        **_CHOICE,
    ),
    "KeptZeros.update": _call(lambda net, o: lampfast.keep_zeros(net, o).update, masks=_masks),
    "KeptZeros.load_state_dict": _call(
        lambda net, o: lampfast.keep_zeros(net, o).load_state_dict,
        state=lambda net, o: lampfast.keep_zeros(net, o).state_dict(),
    ),
    "Pruner": _call(
        _plain(lampfast.Pruner),
        model=_model,
        optimizers=_optimizer,
        schedule=lambda *_: schedules.constant(0.5),
        every=1,
        method="lamp",
        pattern=None,
        dim=None,
        block=None,
        copies=None,
        masks=_masks,
        mask_gradients=True,
        process_group=None,
        **_CHOICE,
    ),
    "Pruner.update": _call(lambda net, o: _pruner(net, o).update, masks=_masks),
    "Pruner.load_state_dict": _call(
        lambda net, o: _pruner(net, o).load_state_dict,
        state=lambda net, o: _pruner(net, o).state_dict(),
    ),
    "geometric": _call(
        _plain(schedules.geometric), interval=1, fraction=0.2, rounds=None, start=None
    ),
    "cubic": _call(_plain(schedules.cubic), final=0.9, steps=10, initial=0.0, start=0),
    "linear": _call(_plain(schedules.linear), final=0.9, steps=10, initial=0.0, start=0),
    "constant": _call(_plain(schedules.constant), sparsity=0.9, start=0),
    "a schedule": _call(_plain(schedules.linear(0.9, 10)), step=3),
    "kept_counts": _call(
        _plain(methods.kept_counts),
        method="erk",
        kept=5,
        shapes=lambda *_: [(3, 4), (2,)],
        zeros=lambda *_: [0, 0],
    ),
    "global_unstructured": _call(
        _plain(torch_prune.global_unstructured),
        parameters=_pair,
        pruning_method=torch_prune.LAMPUnstructured,
        amount=0.5,
        importance_scores=lambda net, _: {(net.fc, "weight"): torch.ones(3, 4)},
    ),
    "lamp_unstructured": _call(
        _plain(torch_prune.lamp_unstructured),
        module=_fc,
        name="weight",
        amount=0.5,
        importance_scores=lambda *_: torch.ones(3, 4),
    ),
    "LAMPUnstructured": _call(_plain(torch_prune.LAMPUnstructured), amount=0.5),
    "LAMPUnstructured.apply": _call(
        _plain(torch_prune.LAMPUnstructured.apply), module=_fc, name="weight", amount=0.5
    ),
    "LAMPUnstructured.compute_mask": _call(
        _plain(torch_prune.LAMPUnstructured(0.5).compute_mask),
        t=lambda *_: torch.randn(5),
        default_mask=lambda *_: torch.ones(5),
    ),
    "to_zeros": _call(_plain(torch_prune.to_zeros), model=_model),
    "checkpoints.prune": _call(
        _plain(checkpoints.prune),
        path=_checkpoint,
        sparsity=0.5,
        out=lambda *_: tempfile.mkdtemp(dir=CHECKPOINT.parent) + "/out.safetensors",
        in_place=False,
        method="lamp",
        importance=lambda *_: str(IMPORTANCE),
        dry_run=False,
        pattern=None,
        dim=None,
        block=None,
        **_CHOICE,
    ),
    "checkpoints.report": _call(
        _plain(checkpoints.report),
        path=_checkpoint,
        sparsity=0.5,
        method="lamp",
        importance=lambda *_: str(IMPORTANCE),
        pattern=None,
        dim=None,
        block=None,
        **_CHOICE,
    ),
    "checkpoints.masks": _call(
        _plain(checkpoints.masks),
        path=_checkpoint,
        sparsity=0.5,
        method="lamp",
        importance=lambda *_: str(IMPORTANCE),
        pattern=None,
        dim=None,
        block=None,
        **_CHOICE,
    ),
    "Report": _call(
        _plain(lampfast.Report),
        layers=lambda net, _: lampfast.report(net).layers,
        left_out=lambda *_: [lampfast.reports.LeftOut("a", (2, 3), 6, "router")],
    ),
    "Report.to_csv": _call(
        lambda net, _: lampfast.report(net).to_csv,
        path=lambda *_: tempfile.mkdtemp(dir=CHECKPOINT.parent) + "/layers.csv",
    ),
    "Report.plot": _call(
        lambda net, _: lampfast.report(net).plot, labels=lambda *_: ["now"], figure=None
    ),
}

# What may take the place of the good ones; the rest of VALUES may not.
FRACTIONS = ["0", "0.5"]
GOOD: dict[str, list[str]] = {
    "sparsity": FRACTIONS,
    "include": ["None"],
    "exclude": ["None", "[]", "()"],
    "stacked": ["None", "[]", "()"],
    "pattern": ["None"],
    "dim": ["None"],
    "block": ["None"],
    "leave": ["None", "[]", "()"],
    "copies": ["None", "[]", "()"],
    "importance": ["None"],
    "importance_scores": ["None", "{}"],
    "out": ["None"],
    "masks": ["None"],
    "Pruner.update, masks": [],
    "mask_gradients": ["True"],
    "amount": FRACTIONS,
    "fraction": FRACTIONS,
    "final": FRACTIONS,
    "initial": FRACTIONS,
    "start": ["None", "0", "2**70"],
    "rounds": ["None", "2**70"],
    "interval": ["2**70"],
    "steps": ["2**70"],
    "every": ["2**70"],
    "schedule": ["function", "module", "lazy module"],  # it is asked when the first step is due
    "process_group": ["None"],
    "group": ["None"],
    "labels": ["None", "['x']"],
    "figure": ["None"],
    "model": ["[]", "()", "{}"],
    "batches": ["[nan tensor]"],  # of another shape, which the model itself refuses
    "kept": ["0"],
    "LAMPUnstructured, amount": [*FRACTIONS, "2**70"],  # what remains is not known yet
    "a schedule, step": ["0", "2**70"],
    "to_zeros, model": ["module", "lazy module"],
    "checkpoints.prune, dry_run": ["True"],
    "Report.to_csv, path": ["str", "Path"],
    "Report, layers": ["[]", "()", "{}", "empty str"],
    "left_out": ["[]", "()", "{}", "empty str"],
}


@pytest.mark.parametrize(
    ("call", "argument"),
    [(call, argument) for call, make in CALLS.items() for argument in make().arguments],
)
def test_misuse(call: str, argument: str) -> None:
    problems = []
    for name, value in VALUES.items():
        if name in GOOD.get(f"{call}, {argument}", GOOD.get(argument, [])):
            continue
        made = CALLS[call]()
        before = {key: one.clone() for key, one in made.net.state_dict().items()}
        try:
            made.function(**{**made.arguments, argument: value()})
        except (TypeError, ValueError, RuntimeError, FileNotFoundError) as error:
            problem = _problem(argument, error)
        except Exception as error:
            problem = f"raised {type(error).__name__}: {error}"
        else:
            problem = "was taken"
        if any(not torch.equal(one, before[key]) for key, one in made.net.state_dict().items()):
            problem = "changed weights"
        if problem:
            problems.append(f"{argument}={name} {problem}")
    assert not problems, "\n".join(problems)


def _problem(argument: str, error: Exception) -> str | None:
    """What is wrong with an error for a wrong argument."""
    text = str(error).partition("\n")[0]
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    if not where.startswith(PACKAGE):
        return f"raised in {Path(where).name}: {text}"
    if not re.search(rf"\b{argument}\b|\blayer '|\bposition \d", text):
        return f"is not named: {text}"
    return None
