"""What a call on the CPU may run with: so many threads, and the kernels of an instruction set.

A build with LAMPFAST_TEST_SIZES can use every instruction set that the processor has, one after
the other; others have only the one that they were started with.
"""

import itertools
from contextlib import suppress
from dataclasses import dataclass

import torch

from lampfast import _core

_choose = getattr(_core, "use_instruction_set", None)
TEST_SIZES = _choose is not None


def _available() -> list[str]:
    """The names of the instruction sets to choose from."""
    default = _core.instruction_set()
    if _choose is None:
        return [default]
    found = []
    for name in ("avx512", "avx2", "baseline"):
        with suppress(RuntimeError):  # this processor does not have it
            _choose(name)
            found.append(name)
    _choose(default)
    return found


INSTRUCTION_SETS = _available()


@dataclass(frozen=True)
class CpuSettings:
    """Settings of the calls that follow."""

    threads: int
    instruction_set: str

    def use(self) -> None:
        """Take them for this process."""
        torch.set_num_threads(self.threads)
        if _choose is not None:
            _choose(self.instruction_set)


EVERY = [CpuSettings(*both) for both in itertools.product(range(1, 5), INSTRUCTION_SETS)]
FEW_AND_MANY = [settings for settings in EVERY if settings.threads in (1, 4)]


def in_turn(turn: int) -> CpuSettings:
    """All of them one after the other, and again."""
    return EVERY[turn % len(EVERY)]


def current() -> CpuSettings:
    """Those in use."""
    return CpuSettings(torch.get_num_threads(), _core.instruction_set())
