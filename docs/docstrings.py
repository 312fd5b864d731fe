"""Docstrings as griffe reads them: `Examples:` are code, and returns begin with their type."""

import re
from typing import Any

from griffe import Extension, Function, Object


class Sections(Extension):
    """Rename the sections `Example:`, and put the annotation before what is returned."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Do so in the docstring of each thing that is documented."""
        if obj.docstring is None:
            return
        text = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
        if isinstance(obj, Function) and obj.returns is not None:
            # Else what comes before a colon in the first sentence would be taken for the type.
            text = re.sub(r"(?m)^Returns:\n( +)", rf"Returns:\n\g<1>{obj.returns}: ", text)
        obj.docstring.value = text
