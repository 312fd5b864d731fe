"""What results are made with: the command, the versions and the machine."""

import os
import platform
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lampfast

sys.path.append(str(Path(__file__).parents[1]))  # the other benchmarks
from machine import processor


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
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
