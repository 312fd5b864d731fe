"""Docstrings as griffe knows them: it takes `Examples:` for code, and `Example:` for prose."""

import re
from typing import Any

from griffe import Extension, Object


class Examples(Extension):
    """Show the section `Example:` of each docstring as code."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Rename the section, in the docstring of each thing that is documented."""
        if obj.docstring is not None:
            value = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
            obj.docstring.value = value
