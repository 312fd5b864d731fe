"""Tests run against the installed lampfast, which has the compiled extension.

`python -m pytest` puts the source folder on the path, where lampfast/ would hide the installed one.
"""

import sys
from pathlib import Path

_SOURCE = Path(__file__).parent

sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _SOURCE]
