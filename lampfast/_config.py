"""What this build is and runs on: the first thing that a bug report needs."""

import platform

import torch

from lampfast import _core


def config() -> dict[str, str | int | bool]:
    """The versions, the instruction set and the number of threads in use.

    Example:
        >>> import lampfast
        >>> lampfast.config()["instruction_set"] in {"baseline", "avx2", "avx512"}
        True

    Returns:
        `version` of lampfast; `instruction_set` of the kernels, the best that the processor has
        unless the environment variable LAMPFAST_ISA names another; `threads`, those of torch;
        `cuda_built`, whether this build has the CUDA engine; the versions of `torch` and
        `python`; and the `platform`.

    Raises:
        RuntimeError: LAMPFAST_ISA names an instruction set that the processor does not have.
    """
    return {
        "version": _core.__version__,
        "instruction_set": _core.instruction_set(),
        "threads": torch.get_num_threads(),
        "cuda_built": _core.cuda_built,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
