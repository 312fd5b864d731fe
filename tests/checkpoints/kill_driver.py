"""Kills runs of `lampfast.checkpoints.prune` with signal 9 and finishes them, until all agree.

Usage: kill_driver.py SOURCE FOLDER KILLS SEED [in_place] [blocks]

Each run is a forked process. With KILLS 0 every run is killed at its next step that the file system
sees (an open, a write, a rename), so that together they die at each of them; else at KILLS random
moments. In the end the output has to be that of a run that nobody has disturbed.
"""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoint_files
import torch

from lampfast import checkpoints

SPARSITY = 0.6
BLOCK = (4, 4) if "blocks" in sys.argv[5:] else None
STEPS = ("replace", "fsync", "pwrite", "open", "unlink", "ftruncate")


def main() -> None:
    """Runs, kills and compares."""
    source, folder, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    random.seed(int(sys.argv[4]))
    torch.set_num_threads(1)
    in_place = "in_place" in sys.argv[5:]
    checkpoints.prune(source, SPARSITY, block=BLOCK, out=folder / "whole")
    whole, before = checkpoint_files.digests(folder / "whole"), checkpoint_files.digests(source)
    if kills:
        seconds = min(_timed(source, folder, in_place) for _ in range(3))
        died = sum(_at_random(source, folder, in_place, seconds, whole) for _ in range(kills))
    else:
        died = _at_every_step(source, folder, in_place, whole)
    assert checkpoint_files.digests(source) == before, "the source has changed"
    print(died)


def _at_every_step(source: Path, folder: Path, in_place: bool, whole: dict[str, str]) -> int:
    step = 0
    while True:
        step += 1
        path, out = _fresh(source, folder, in_place)
        if not _run(path, out, lambda step=step: _die_at(step)):  # type: ignore[misc]
            return step - 1
        _check_finished(path, out, whole)


def _at_random(
    source: Path, folder: Path, in_place: bool, seconds: float, whole: dict[str, str]
) -> bool:
    path, out = _fresh(source, folder, in_place)
    process = _start(path, out, lambda: None)
    time.sleep(random.uniform(0, 1.2 * seconds))
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if not os.WIFSIGNALED(status):
        assert checkpoint_files.digests(out) == whole, "a run that was done has another output"
        return False
    _check_finished(path, out, whole)
    return True


def _check_finished(path: Path, out: Path, whole: dict[str, str]) -> None:
    """No file is there in part, and the next run makes all of them whole."""
    finals = {
        name: digest
        for name, digest in (checkpoint_files.digests(out) if out.exists() else {}).items()
        if ".lampfast-" not in name
    }
    dense = checkpoint_files.digests(path)
    wrong = [name for name, it in finals.items() if it not in (whole[name], dense.get(name))]
    assert not wrong, f"there in part: {wrong}"
    if finals.keys() == whole.keys() and finals == whole and not _is_begun(out):
        return  # only the very last step was missing
    assert not _run(path, out, lambda: None)
    assert checkpoint_files.digests(out) == whole, "the output differs"


def _is_begun(out: Path) -> bool:
    return (out / ".lampfast-state").exists()


def _fresh(source: Path, folder: Path, in_place: bool) -> tuple[Path, Path]:
    """A source and an output that is not there yet; in place, a copy of the source is both."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    if in_place:
        shutil.copytree(source, out)
        return out, out
    return source, out


def _timed(source: Path, folder: Path, in_place: bool) -> float:
    path, out = _fresh(source, folder, in_place)
    start = time.perf_counter()
    assert not _run(path, out, lambda: None)
    return time.perf_counter() - start


def _run(path: Path, out: Path, prepare: Callable[[], None]) -> bool:
    """Prune in another process; whether it was killed."""
    _, status = os.waitpid(_start(path, out, prepare), 0)
    if os.WIFSIGNALED(status):
        return True
    assert status == 0, "a run has failed"
    return False


def _start(path: Path, out: Path, prepare: Callable[[], None]) -> int:
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        prepare()
        if path == out:
            checkpoints.prune(path, SPARSITY, block=BLOCK, in_place=True)
        else:
            checkpoints.prune(path, SPARSITY, block=BLOCK, out=out)
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    os._exit(status)


def _die_at(step: int) -> None:
    """Have this process killed at its n-th step."""
    left = [step]

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return call

    for name in STEPS:
        setattr(os, name, dying(getattr(os, name)))


if __name__ == "__main__":
    main()
