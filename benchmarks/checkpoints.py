"""How long `lampfast prune` takes beside `cp` of the same files, and how much memory.

Usage: checkpoints.py [--gigabytes 10] [--shard 2.5] [--rounds 3] [--folder FOLDER] [--kills N]

Makes a checkpoint in bfloat16 in FOLDER (its disk is what is measured) and removes it in the end.
Copying and pruning take turns; each begins with files that are on the disk and not in memory, and
ends when all is on the disk. Needs Linux, and three times the checkpoint's size of disk.
"""

import argparse
import json
import mmap
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import machine
import torch
from safetensors.torch import load_file, save_file

import lampfast
from lampfast.checkpoints.verbs import Arguments, run

SPARSITY = 0.5
ROWS, COLUMNS = 4096, 11008
BLOCK = 1 << 23


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=10.0)
    parser.add_argument("--shard", type=float, default=2.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path.cwd())
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--prune", type=Path, help=argparse.SUPPRESS)  # what the other process does
    parser.add_argument("--watched", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prune:
        print(json.dumps(_prune_here(options.prune, options.folder, options.watched)))
        return
    home = Path(tempfile.mkdtemp(dir=options.folder, prefix="checkpoint-"))
    try:
        _measure(home, options.gigabytes, options.shard, options.rounds)
        if options.kills:
            _kill(home, options.kills)
    finally:
        shutil.rmtree(home)


def _measure(home: Path, gigabytes: float, shard: float, rounds: int) -> None:
    source, copy, out = home / "dense", home / "copy", home / "sparse"
    size = _make(source, gigabytes, shard)
    print(f"{machine.processor()}, load {os.getloadavg()[0]:.1f}")
    print(f"{size / 1e9:.2f} GB in {len(list(source.glob('*.safetensors')))} shards")
    for name, read in READS.items():
        print(f"read by {name}: {_rate(read, source, size):.2f} GB/s")
    copying, pruning = [], []
    for _ in range(rounds):
        _forget(source)
        copying.append(_seconds(lambda: _copy(source, copy)))
        shutil.rmtree(copy)
        found = _prune(source, out)
        pruning.append(found["seconds"])
        print(
            f"cp and sync {copying[-1]:.2f} s, prune {pruning[-1]:.2f} s "
            f"(ratio {pruning[-1] / copying[-1]:.2f}), of it until the first block is written "
            f"{found['decided']:.2f} s; {found['cpu']:.1f} s of processor time; "
            f"load {os.getloadavg()[0]:.1f}"
        )
    ratio = statistics.median(p / c for p, c in zip(pruning, copying, strict=True))
    print(
        f"medians: cp {statistics.median(copying):.2f} s, "
        f"prune {statistics.median(pruning):.2f} s, ratio {ratio:.2f}"
    )
    memory = _prune(source, out, watched=True)["memory"]
    print(f"peak of anonymous memory +{memory / 2**20:.0f} MiB")
    print(f"layers that are exact by the plain call: {_check(source, out)}")


def _make(folder: Path, gigabytes: float, shard: float) -> int:
    """Layers of one shape, with rows of many scales, so that LAMP gives them many sparsities."""
    folder.mkdir()
    torch.manual_seed(0)
    each = 2 * ROWS * COLUMNS
    shards, layers = round(gigabytes / shard), max(1, round(shard * 1e9 / each))
    place = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {}
        for j in range(layers):
            k = i * layers + j
            scales = torch.exp(0.1 * (k % 7) * torch.randn(ROWS, 1))
            weight = torch.randn(ROWS, COLUMNS).mul_(0.02 * scales)
            part[f"layers.{k}.weight"] = weight.bfloat16()
        save_file(part, folder / file, {"format": "pt"})
        place.update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
    return sum(file.stat().st_size for file in folder.iterdir())


def _prune(source: Path, out: Path, *, watched: bool = False) -> dict[str, float]:
    """Prune in a process of its own, timed, or watched for its memory."""
    command = [sys.executable, __file__, "--prune", str(source), "--folder", str(out)]
    shutil.rmtree(out, ignore_errors=True)
    _forget(source)
    result = subprocess.run(
        [*command, *["--watched"] * watched], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(result.stdout)
    return found


def _prune_here(source: Path, out: Path, watched: bool) -> dict[str, float]:
    peak, decided, is_done = 0, 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not is_done.wait(0.005):
            peak = max(peak, _anonymous())

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal decided
        if stage == "writing" and not decided:
            decided = time.perf_counter() - start

    lampfast.prune({"warm": torch.randn(1000, 1000)}, 0.5)
    base = _anonymous()
    thread = threading.Thread(target=watch)
    if watched:
        thread.start()
    start, cpu = time.perf_counter(), time.process_time()
    run(source, Arguments(SPARSITY), out=out, progress=progress)
    _sync(out)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    is_done.set()
    if watched:
        thread.join()
    return {"seconds": seconds, "decided": decided, "cpu": cpu, "memory": peak - base}


def _check(source: Path, out: Path) -> str:
    """Compare each layer with the plain call for as many weights as were pruned of it."""
    right = total = pruned = numel = 0
    for file in sorted(source.glob("*.safetensors")):
        dense, sparse = load_file(file), load_file(out / file.name)
        for name, weight in dense.items():
            count = int((sparse[name] == 0).sum())
            pruned, numel, total = pruned + count, numel + weight.numel(), total + 1
            lampfast.prune([weight], count)
            right += torch.equal(weight, sparse[name])
    return f"{right} of {total}, with {pruned:,} of {round(SPARSITY * numel):,} weights pruned"


def _kill(home: Path, kills: int) -> None:
    """Kill a smaller job at random moments, and finish it each time."""
    tests = Path(__file__).parents[1] / "tests" / "checkpoints"
    source = home / "small"
    _make(source, 0.2, 0.1)
    for mode in ([], ["in_place"]):
        command = [sys.executable, str(tests / "kill_driver.py"), str(source), str(home)]
        result = subprocess.run(
            [*command, str(kills), "1", *mode], capture_output=True, text=True, check=False
        )
        outcome = result.stderr.strip() or f"{result.stdout.strip()} died, all were finished"
        print(f"{kills} kills {' '.join(mode)}: {outcome}")
        shutil.rmtree(home / "whole", ignore_errors=True)
        shutil.rmtree(home / "out", ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-r", "--reflink=never", str(source), str(target)], check=True)
    _sync(target)


def _sync(folder: Path) -> None:
    subprocess.run(["sync", *map(str, folder.iterdir())], check=True)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _forget(folder: Path) -> None:
    """Have files on the disk only."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _rate(read: Callable[[Path], object], folder: Path, size: int) -> float:
    _forget(folder)
    return size / 1e9 / _seconds(lambda: list(map(read, folder.iterdir())))


def _dd(path: Path, *options: str) -> None:
    command = ["dd", f"if={path}", "of=/dev/null", f"bs={BLOCK}", "status=none", *options]
    subprocess.run(command, check=True)


def _pread(path: Path) -> None:
    buffer = bytearray(BLOCK)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _mapped(path: Path) -> None:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        mapped.madvise(mmap.MADV_SEQUENTIAL)
        for start in range(0, len(mapped), mmap.PAGESIZE):
            mapped[start]


READS: dict[str, Callable[[Path], object]] = {
    "dd": _dd,
    "dd iflag=direct": lambda path: _dd(path, "iflag=direct"),
    "pread": _pread,
    "mmap": _mapped,
}


def _anonymous() -> int:
    """The anonymous memory that this process has, in bytes."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, "/proc/self/status has no RssAnon"
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
