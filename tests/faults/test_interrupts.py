"""Signals at any moment: a call is finished as a whole, or it has written nothing."""

import _weakrefset
import copy
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import another_python
import pytest
import torch

import lampfast
from lampfast._engine import changes
from lampfast._engine.interrupts import Deferred
from lampfast._engine.views import View
from lampfast._training.kept_layers import KeptLayers

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

# Where signals come: in lampfast, and in what torch does for it.
FILES = (str(Path(lampfast.__file__).parent), torch.nn.modules.module.__file__)


class Interrupted(BaseException):
    """What the handler of the tests raises, as that of Ctrl-C raises KeyboardInterrupt."""


def _raise(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """SIGUSR1 and SIGUSR2 raise."""
    numbers = (signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.signal(number, _raise) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


# --- the section ---


def _section(done: list[int], *numbers: int) -> None:
    """A section in a section, during which signals come, and which does not notice."""
    with Deferred():
        with Deferred():
            for number in numbers:
                signal.raise_signal(number)
                done.append(number)
        done.append(0)


def test_a_handler_waits_for_the_end_of_the_outermost_section() -> None:
    done: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        done.append(-number)

    signal.signal(signal.SIGUSR1, handler)
    _section(done, signal.SIGUSR1)
    assert done == [signal.SIGUSR1, 0, -signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) is handler


def test_every_handler_is_called_once_even_if_others_raise() -> None:
    with pytest.raises(Interrupted) as raised:
        _section([], signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1)
    assert raised.value.args == (signal.SIGUSR2,)
    assert isinstance(raised.value.__context__, Interrupted)
    assert raised.value.__context__.args == (signal.SIGUSR1,)
    assert [signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGUSR2)] == [_raise, _raise]


def test_an_error_in_the_section_is_not_lost() -> None:
    def fail() -> None:
        with Deferred():
            signal.raise_signal(signal.SIGUSR1)
            raise ValueError("an error")

    with pytest.raises(Interrupted) as raised:
        fail()
    assert isinstance(raised.value.__context__, ValueError)


def test_a_handler_that_is_set_in_the_section_stays() -> None:
    with Deferred():
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


def test_ignored_signals_and_other_threads_are_left_alone() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    seen: list[object] = []

    def section() -> None:
        with Deferred():
            seen.append(signal.getsignal(signal.SIGUSR1))

    thread = threading.Thread(target=section)
    thread.start()
    thread.join()
    assert seen == [_raise]
    with Deferred():
        assert signal.getsignal(signal.SIGUSR1) is not _raise
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_another_thread_forks_while_a_section_runs() -> None:
    """In the new process there is no such section, and signals do not wait for its end."""
    codes = []

    def fork() -> None:
        child = os.fork()
        if child == 0:
            try:
                signal.raise_signal(signal.SIGUSR1)
            except Interrupted:
                os._exit(7)
            os._exit(0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    thread = threading.Thread(target=fork)
    with Deferred():
        thread.start()
        thread.join()
    assert codes == [7]


# --- the verbs ---


class Training:
    """A model with everyone who has to hear of a pruning."""

    def __init__(self, width: int = 12) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(width, 9), torch.nn.Linear(9, 5))
        self.layers = [self.model.get_parameter(f"{i}.weight") for i in range(2)]
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1)
        lampfast.prune(self.model, 0.2)
        self.saved = copy.deepcopy(self.model.state_dict())
        self.pruner = lampfast.Pruner(self.model, self.optimizer, lampfast.schedules.constant(0.5))
        self.told = 0
        changes.listen(self)  # beside what the Pruner has
        self.step()

    def pruning(self, layers: Sequence[View]) -> None:
        """Not counted."""

    def stepping(self, optimizer: torch.optim.Optimizer) -> None:
        """Not counted."""

    def pruned(self, layers: Sequence[View]) -> None:
        """Count what is told of the own layers."""
        self.told += sum(view.weight is own for view in layers for own in self.layers)

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """Not counted."""

    def step(self) -> None:
        """Train with gradients that move every weight."""
        for parameter in self.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.optimizer.step()

    def state(self) -> list[Any]:
        """All that a call may change."""
        weights = [parameter.tolist() for parameter in self.model.state_dict().values()]
        return [weights, self.pruner.history, self.pruner.state_dict()["step"], self.told]

    def versions(self) -> list[int]:
        """Those of the layers, as autograd sees them."""
        return [layer._version for layer in self.layers]

    def zeros(self) -> list[torch.Tensor]:
        """Where the layers are zero."""
        return [layer == 0 for layer in self.layers]

    def keeps(self, zeros: Sequence[torch.Tensor]) -> bool:
        """Whether these are zero after another step."""
        self.step()
        return all(bool((now | ~was).all()) for now, was in zip(self.zeros(), zeros, strict=True))


def _load(training: Training) -> None:
    state = training.pruner.state_dict()
    training.pruner.load_state_dict(
        {
            "step": 3,
            "history": [[2, 0.5]],
            "zeros": {name: kept & (kept.cumsum(-1) > 2) for name, kept in state["zeros"].items()},
        }
    )


VERBS: dict[str, Callable[[Training], object]] = {
    "prune": lambda training: lampfast.prune(training.model, 0.5),
    "Pruner.step": lambda training: training.pruner.step(),
    "Pruner.load_state_dict": _load,
    "rewind": lambda training: lampfast.rewind(training.model, training.saved),
}


@contextmanager
def _signal_at(moment: int) -> Iterator[list[int]]:
    """Let a signal come before the so-many-th line that runs; counts the lines."""
    lines = [0]

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(FILES):
            return None
        if event == "line":
            lines[0] += 1
            if lines[0] == moment:
                signal.raise_signal(signal.SIGUSR1)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


def _moments(call: Callable[[], object]) -> Iterator[int]:
    """Some hundred lines at which a signal may come, from the first to the last one."""
    gc.collect()  # no listeners that later calls would not have
    with _signal_at(0) as lines:
        call()
    assert lines[0] > 10
    return iter(range(1, lines[0] + 1, 1 + lines[0] // 150))


def _interrupted(call: Callable[[], object], moment: int) -> bool:
    try:
        with _signal_at(moment):
            call()
    except Interrupted:
        return True
    finally:
        signal.signal(signal.SIGUSR1, _raise)
        gc.enable()  # a handler cannot run on the line that does so, but `moment` may be there
    return False


@pytest.mark.parametrize("verb", VERBS)
def test_a_signal_at_every_line(verb: str) -> None:
    """Whatever the line, it raises, and all has happened or nothing."""
    call, finished = VERBS[verb], Training()
    moments = _moments(partial(call, finished))
    after, ends = finished.state(), []
    for moment in moments:
        training = Training()
        before, versions = training.state(), training.versions()
        assert _interrupted(partial(call, training), moment)
        state = training.state()
        assert state in (before, after), f"line {moment}"
        if state == after:
            assert all(now > then for now, then in zip(training.versions(), versions, strict=True))
            assert training.keeps(training.zeros()), f"line {moment}"
        ends.append(state == after)
    assert set(ends) == {False, True}
    assert ends == sorted(ends), "it is nothing up to some line, and then all"


def test_a_signal_at_every_line_of_the_hook() -> None:
    """What a step has moved before the signal is zero again after the next step at the latest."""
    training = Training()
    zeros = training.zeros()
    for moment in _moments(training.step):
        assert _interrupted(training.step, moment)
        assert training.keeps(zeros), f"line {moment}"


def test_a_handler_may_ask_and_change_who_listens_at_any_line() -> None:
    """As one that prunes does, or the finalizer of an object that the collector finds there."""

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename not in (changes.__file__, _weakrefset.__file__):
            return None
        changes.listen(training)
        assert training in changes.listening()
        return trace

    def listening() -> None:
        sys.settrace(trace)
        changes.listening()
        changes.stop_listening(training)
        changes.listen(training)
        sys.settrace(None)
        done.append(1)

    training, done = Training(), list[int]()
    thread = threading.Thread(target=listening, daemon=True)
    thread.start()
    thread.join(30)
    assert done


def test_a_signal_at_any_line_of_a_section_ends_it() -> None:
    """Those after it defer as before."""

    def section() -> None:
        with Deferred():
            pass

    with _signal_at(0) as lines:
        section()
    for moment in range(1, lines[0] + 1):
        assert _interrupted(section, moment), f"line {moment}"
        done = 0
        with suppress(Interrupted), Deferred():
            signal.raise_signal(signal.SIGUSR1)
            done = moment
        assert done == moment, f"line {moment}"
        assert signal.getsignal(signal.SIGUSR1) is signal.getsignal(signal.SIGUSR2) is _raise


def test_signals_that_another_thread_sends_meanwhile() -> None:
    """They reach this thread or that one, in Python or in the engine."""
    random = Random(0)
    training = Training(20_000)
    start = time.perf_counter()
    VERBS["prune"](training)
    takes = time.perf_counter() - start
    raised = written = 0
    for _ in range(30):
        with torch.no_grad():
            for layer in training.layers:
                layer.normal_()
        training.pruner.remove()
        training.pruner = lampfast.Pruner(
            training.model, training.optimizer, lampfast.schedules.constant(0.5)
        )
        sender = threading.Timer(
            random.uniform(0, 1.2 * takes), os.kill, (os.getpid(), signal.SIGUSR1)
        )
        told = training.told
        try:
            sender.start()
            VERBS["prune"](training)
            sender.join()
            time.sleep(0.01)
        except Interrupted:
            raised += 1
        sender.join()
        zeros = training.zeros()
        count = sum(int(zero.sum()) for zero in zeros)
        total = sum(layer.numel() for layer in training.layers)
        assert count in (0, round(0.5 * total))
        assert (training.told > told) == (count > 0)
        assert training.keeps(zeros)
        written += count > 0
    assert raised
    assert written


CTRL_C = """
import os, random, signal, threading, time, torch, lampfast
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
weight = torch.nn.Parameter(torch.randn(300_000))
optimizer = torch.optim.SGD([weight], 0.1)
kept = lampfast.keep_zeros([weight], optimizer)
zeros = interrupted = 0
while zeros < 300_000:
    sender = threading.Timer(random.uniform(0, 0.01), os.kill, (os.getpid(), signal.SIGINT))
    try:
        sender.start()
        while zeros < 300_000:
            lampfast.prune([weight], min(zeros + 15_000, 300_000))
            zeros = int((weight == 0).sum())
        while sender.is_alive():
            time.sleep(0.001)
        time.sleep(0.01)
    except KeyboardInterrupt:
        interrupted += 1
    zeros = int((weight == 0).sum())
    assert zeros % 15_000 == 0, zeros
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert int((weight == 0).sum()) == zeros
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
print(interrupted)
"""


def test_ctrl_c() -> None:
    done = another_python.run("-c", CTRL_C)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


# --- exceptions ---


class Failing:
    """A listener that raises."""

    def pruning(self, layers: Sequence[View]) -> None:
        """Succeed."""

    def stepping(self, optimizer: torch.optim.Optimizer) -> None:
        """Succeed."""

    def pruned(self, layers: Sequence[View]) -> None:
        """Fail."""
        raise Interrupted("pruned")

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """Fail."""
        raise Interrupted("stepped")


@pytest.mark.parametrize("verb", ["prune", "Pruner.step"])
@pytest.mark.parametrize("position", range(3))
def test_a_listener_raises(verb: str, position: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others hear of it nevertheless, and it is recorded."""
    finished = Training()
    VERBS[verb](finished)
    training, listening = Training(), changes.listening
    failing = Failing()

    def with_failing() -> list[changes.Listener]:
        listeners = listening()
        listeners.insert(position, failing)
        return listeners

    monkeypatch.setattr(changes, "listening", with_failing)
    with pytest.raises(Interrupted, match="pruned"):
        VERBS[verb](training)
    with pytest.raises(Interrupted, match="stepped"):
        training.step()
    monkeypatch.undo()
    training.step()
    finished.step()
    finished.step()
    assert training.state() == finished.state()


@pytest.mark.parametrize("verb", ["prune", "Pruner.step"])
def test_a_listener_raises_before(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training()
    before = training.state()

    def refuse(layers: Sequence[View]) -> None:
        raise Interrupted("pruning")

    monkeypatch.setattr(training, "pruning", refuse)
    with pytest.raises(Interrupted, match="pruning"):
        VERBS[verb](training)
    training.told = 0
    assert training.state() == before


@pytest.mark.parametrize("verb", ["prune", "Pruner.step"])
def test_zeros_that_could_not_be_recorded(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are before the next step, and are in the state."""
    training = Training()

    def fail(kept: KeptLayers, layers: Sequence[View]) -> None:
        raise MemoryError("no mask")

    with monkeypatch.context() as patch:
        patch.setattr(KeptLayers, "pruned", fail)
        with pytest.raises(MemoryError, match="no mask"):
            VERBS[verb](training)
    zeros, finished = training.zeros(), Training()
    VERBS[verb](finished)
    assert str(training.pruner.state_dict()) == str(finished.pruner.state_dict())
    assert training.keeps(zeros)
    assert sum(int(zero.sum()) for zero in zeros) == round(0.5 * (12 * 9 + 9 * 5))


def test_rewinding_fails_before_it_writes() -> None:
    """Buffers that cannot be written, between two layers."""
    for make in (_expanded, _inference):
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Module(), torch.nn.Linear(4, 4))
        model.get_submodule("1").register_buffer("table", make())
        saved = copy.deepcopy(model.state_dict())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=r"'1\.table'"):
            lampfast.rewind(model, saved)
        now = model.state_dict()
        assert all(torch.equal(now[name], before[name]) for name in before)
        lampfast.rewind(model, saved, leave="1.table")
        assert torch.equal(model.get_parameter("0.weight"), saved["0.weight"])


def _expanded() -> torch.Tensor:
    return torch.ones(1).expand(3)


def _inference() -> torch.Tensor:
    with torch.inference_mode():
        return torch.ones(3)
