"""Another Python process, which imports the installed lampfast just as the tests do."""

import os
import subprocess
import sys
from pathlib import Path


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Start Python where no folder of sources hides the installed package, and wait for it."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=Path(__file__).parent,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
