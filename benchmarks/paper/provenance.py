"""What results are made with: the command, the versions and the machine."""

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lampfast

sys.path.append(str(Path(__file__).parents[1]))  # the other benchmarks
from machine import processor

_ROOT = Path(__file__).parents[2]
_SOURCES = "CMakeLists.txt", "csrc", "lampfast", "benchmarks/paper/*.py"


def call(workers: int) -> dict[str, Any]:
    """Describe this call of study.py."""
    return {
        "started": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": " ".join(["python benchmarks/paper/study.py", *sys.argv[1:]]),
        "workers": workers,
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "instruction_set": lampfast.config()["instruction_set"],
        "lampfast": lampfast.__version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _commit() -> str | None:
    """The commit that is checked out, with a + if sources differ from it; None if git says none."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        changes = _git("status", "--porcelain", "--", *_SOURCES)
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}+" if changes else head


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_ROOT), *arguments]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
