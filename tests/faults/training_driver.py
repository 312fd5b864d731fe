"""Makes each allocation of the verbs for training fail in turn, Python's and torch's too.

Runs with the library of failing_calls.cpp preloaded, and Python's objects allocated by malloc.
Usage: training_driver.py SECONDS
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial

import failures
import torch

import lampfast

RUN = 15  # so many allocations fail one after the other: memory runs out, and is there again


class Training:
    """A model whose zeros are kept, and a Pruner of it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(30, 20), torch.nn.Linear(20, 20), torch.nn.Conv2d(3, 4, 3)
        )
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.SGD(self.parameters, 0.1)
        schedule = lampfast.schedules.constant(0.5)
        self.pruner = lampfast.Pruner(self.model, self.optimizer, schedule)
        self.before = [parameter.tolist() for parameter in self.parameters]
        self.versions = [parameter._version for parameter in self.parameters]

    def zeros(self) -> list[torch.Tensor]:
        """Where the layers are zero."""
        return [parameter == 0 for parameter in self.parameters if parameter.dim() > 1]

    def problem(self, is_pruner: bool) -> str | None:
        """What is neither as before nor as it should be after."""
        if [parameter.tolist() for parameter in self.parameters] == self.before:
            return "the history is ahead" if self.pruner.history else None
        zeros = self.zeros()
        if sum(int(zero.sum()) for zero in zeros) != sum(zero.numel() for zero in zeros) // 2:
            return "partly pruned"
        if is_pruner and self.pruner.history != [(1, 0.5)]:
            return "the history is behind"
        for parameter, version in zip(self.parameters, self.versions, strict=True):
            if parameter.dim() > 1 and parameter._version == version:
                return "autograd does not know"
        for parameter in self.parameters:
            parameter.grad = torch.ones_like(parameter)
        self.optimizer.step()
        kept = zip(self.zeros(), zeros, strict=True)
        return None if all(bool((now | ~was).all()) for now, was in kept) else "zeros are lost"


VERBS: dict[str, Callable[[Training], object]] = {
    "prune": lambda training: lampfast.prune(training.model, 0.5),
    "Pruner.step": lambda training: training.pruner.step(),
}


def main(seconds: float) -> None:
    torch.set_num_threads(1)
    done = errors = 0
    wrong = []
    ends = time.monotonic() + seconds
    for position, (name, verb) in enumerate(VERBS.items()):
        until = time.monotonic() + (ends - time.monotonic()) / (len(VERBS) - position)
        for _ in range(3):  # the first calls fill caches
            training = Training()
            failures.disturbed(partial(verb, training))
        for first, last in failures.points(failures.allocations(), RUN):
            training = Training()
            errors += failures.disturbed(partial(verb, training), first, last) is not None
            done += 1
            if problem := training.problem(name == "Pruner.step"):
                wrong.append(f"{name}: {problem}, allocations {first} to {last} failed")
            if time.monotonic() > until:
                break
    print(json.dumps({"points": done, "errors": errors, "wrong": wrong}))


if __name__ == "__main__":
    main(float(sys.argv[1]))
