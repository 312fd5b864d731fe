"""Processes that are forked or spawned, also while a call runs: they prune as any other."""

import gc
import multiprocessing
import os
import sys
import threading
import time
from hashlib import blake2b
from multiprocessing.context import ForkContext, SpawnContext

import another_python
import numpy as np
import pytest

import lampfast
from lampfast import _core
from lampfast._engine import collector

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]

THREADS = 4


def _pruned() -> str:
    """A digest of what the engine leaves of some layers, with threads."""
    random = np.random.default_rng(0)
    layers = [random.standard_normal(size).astype(np.float32) for size in (200_000, 3000, 70)]
    pointers = [
        (layer.__array_interface__["data"][0], _core.Dtype.float32, layer.shape, (1,), -1)
        for layer in layers
    ]
    count = sum(layer.size for layer in layers) // 2
    spec = _core.SelectionSpec(_core.Ranking.lamp, [count])
    _core.prune(pointers, pointers, spec, (THREADS, ()))
    return blake2b(b"".join(layer.tobytes() for layer in layers)).hexdigest()


def _answer(answers: "multiprocessing.Queue[str]") -> None:
    answers.put(_pruned())


@pytest.mark.parametrize(
    "context",
    [multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")],
    ids=["fork", "spawn"],
)
def test_a_new_process_prunes_alike(context: ForkContext | SpawnContext) -> None:
    expected = _pruned()
    answers = context.Queue()
    process = context.Process(target=_answer, args=(answers,))
    process.start()
    assert answers.get(timeout=60) == expected
    process.join()
    assert process.exitcode == 0


def test_forks_while_other_threads_prune() -> None:
    """A call owns no lock that a new process would inherit and wait for."""
    expected = _pruned()
    is_over = threading.Event()

    def prune() -> None:
        weights = [np.ones(100_000, np.float32)]
        while not is_over.is_set():
            lampfast.prune(weights, 0.5)

    others = [threading.Thread(target=prune) for _ in range(2)]
    for other in others:
        other.start()
    codes = []
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                os._exit(0 if _pruned() == expected else 1)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    finally:
        is_over.set()
        for other in others:
            other.join()
    assert codes == [0] * 20


_FORKS_AND_ENDS = """
import os, sys

sys.path.insert(0, "faults")
from test_processes import _pruned

expected = _pruned()
child = os.fork()
if child == 0:
    sys.exit(7 if _pruned() == expected else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_ends_as_usual() -> None:
    """The threads that helped its parent are not there to be waited for."""
    done = another_python.run("-c", _FORKS_AND_ENDS, PYTHONWARNINGS="ignore")
    assert done.returncode == 7, done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_the_helpers_of_a_thread_end_with_it() -> None:
    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    during = []

    def prune() -> None:
        _pruned()
        during.append(threads())

    before = threads()
    thread = threading.Thread(target=prune)
    thread.start()
    thread.join()
    assert during == [before + THREADS]
    deadline = time.monotonic() + 60  # a thread that has been joined may stay in /proc for a moment
    while threads() > before and time.monotonic() < deadline:
        time.sleep(0.001)
    assert threads() == before


def test_a_fork_while_another_thread_pauses_the_collector() -> None:
    """The thread that would let it run again is not in the new process."""
    is_paused, is_over = threading.Event(), threading.Event()

    @collector.paused
    def call() -> None:
        is_paused.set()
        is_over.wait()

    other = threading.Thread(target=call)
    other.start()
    is_paused.wait()
    if (child := os.fork()) == 0:
        os._exit(7 if gc.isenabled() else 1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert not gc.isenabled()
    is_over.set()
    other.join()
    assert gc.isenabled()
    assert code == 7
