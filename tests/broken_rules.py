"""Rules that the masks of sharded models rest on, broken so that a test can see that it notices."""

from __future__ import annotations

from typing import Any

import pytest

from lampfast._engine import sharded


def count_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count what several ranks hold several times."""
    original = sharded.Sharded._machine_part

    def all_counted(self: sharded.Sharded, dtypes: Any) -> Any:
        communicator, layers, own, begins = original(self, dtypes)
        own = [(layer, True, first, steps) for layer, _, first, steps in own]
        return communicator, layers, own, begins

    monkeypatch.setattr(sharded.Sharded, "_machine_part", all_counted)


def turn_pieces_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first piece of a layer begin where the last one does, and so on."""
    original = sharded.Sharded._machine_part

    def turned_around(self: sharded.Sharded, dtypes: Any) -> Any:
        communicator, layers, own, begins = original(self, dtypes)
        turned = [
            (layer, counts, begins[layer][::-1][begins[layer].index(first)], steps)
            for layer, counts, first, steps in own
        ]
        return communicator, layers, turned, begins

    monkeypatch.setattr(sharded.Sharded, "_machine_part", turned_around)
