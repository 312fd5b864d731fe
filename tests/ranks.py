"""Real ranks of gloo on this machine: how tests start them, and how each of them joins."""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import distributed


def environment() -> dict[str, str]:
    """An environment in which gloo needs no network beyond this machine."""
    return {**os.environ, **({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {})}


def run(script: str, folder: Path, ranks: int, timeout: int) -> list[Any]:
    """What each rank of a script beside this one has written to its file in a folder."""
    command = [sys.executable, str(Path(__file__).with_name(script)), str(folder)]
    processes = [
        subprocess.Popen([*command, str(rank), str(ranks)], env=environment())
        for rank in range(ranks)
    ]
    try:
        codes = [process.wait(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * ranks
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


def join(folder: Path, rank: int, ranks: int, seconds: int = 60) -> None:
    """Become a rank of those that meet in a folder, and wait so long for others."""
    distributed.init_process_group(
        "gloo",
        init_method=(folder / "meeting").as_uri(),
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=seconds),
    )


def results(parts: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """What each part of a script finds; nothing after one that raises, as ranks are apart then."""
    found: dict[str, Any] = {}
    for name, part in parts.items():
        try:
            found[name] = part()
        except ModuleNotFoundError as error:
            found[name] = [f"skip: {error}"]
        except Exception:
            found[name] = [traceback.format_exc()[-2000:]]
            break
    return found
