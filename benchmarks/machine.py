"""What the figures were measured on: the processor, the build, and how fast memory is."""

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import torch

import lampfast
from lampfast._cli import measure


@dataclass(frozen=True)
class Machine:
    """The heading of the tables.

    Attributes:
        read: GB/s of reading, by summing up a big tensor.
        copy: GB/s of copying it, the bytes that are read plus those that are written.
    """

    processor: str
    cores: int
    instruction_set: str
    threads: int
    torch: str
    lampfast: str
    read: float
    copy: float

    def __str__(self) -> str:
        return (
            f"{self.processor}, {self.cores} cores, {self.instruction_set}\n"
            f"lampfast {self.lampfast}, torch {self.torch}, {self.threads} threads\n"
            f"memory: read {self.read:.1f} GB/s, copy {self.copy:.1f} GB/s (read + written)"
        )


def inspect(numel: int, rounds: int) -> Machine:
    """Measures this machine.

    Args:
        numel: How many float32 elements are read and copied; more than the caches hold.
        rounds: How often.
    """
    config = lampfast.config()
    source, target = torch.ones(numel), torch.ones(numel)
    reading, copying = measure.median_seconds(
        [lambda: source.sum, lambda: lambda: target.copy_(source)], rounds
    )
    return Machine(
        processor=processor(),
        cores=os.cpu_count() or 1,
        instruction_set=str(config["instruction_set"]),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        lampfast=lampfast.__version__,
        read=source.nbytes / reading / 1e9,
        copy=2 * source.nbytes / copying / 1e9,
    )


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = cpuinfo.exists() and re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.M)
    return found[1] if found else platform.processor() or platform.machine()
