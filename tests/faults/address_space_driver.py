"""Prunes in processes that may take hardly any more memory, and counts how they end.

Usage: address_space_driver.py TRIALS
"""

import json
import os
import resource
import sys
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from sanitize_driver import load

THREADS = 8
STACK = 8 << 20  # of a thread, and a page behind it
WORDS = {0: "pruned", 1: "MemoryError, nothing written", 2: "MemoryError, partly pruned"}


def main(trials: int) -> None:
    core = load()
    random = np.random.default_rng(0)
    sizes = (400_000, 70_000, 3000, *[300] * 50)
    arrays = [random.standard_normal(size).astype(np.float32) for size in sizes]
    pointers = [
        (array.__array_interface__["data"][0], core.Dtype.float32, array.shape, (1,), -1)
        for array in arrays
    ]
    count = sum(sizes) // 2
    spec = core.SelectionSpec(core.Ranking.lamp, [count])
    resource.setrlimit(resource.RLIMIT_STACK, (STACK, resource.RLIM_INFINITY))
    ends: Counter[str] = Counter()
    for trial in range(trials):
        # Room for some threads' stacks, and a little for what they do.
        stacks, rest = trial % THREADS, int(random.integers(0, 1 << 18))
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            room = stacks * (STACK + 4096) + rest
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (taken + room, taken + room))
            code = 0
            try:
                core.prune(pointers, pointers, spec, (THREADS, ()))
            except MemoryError:
                code = 1
            zeros = sum(int(np.count_nonzero(array == 0)) for array in arrays)
            os._exit(code if zeros == (0 if code else count) else 2)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        ends[WORDS.get(code, f"exit code {code}")] += 1
    print(json.dumps(ends))


if __name__ == "__main__":
    main(int(sys.argv[1]))
