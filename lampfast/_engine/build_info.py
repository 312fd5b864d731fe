"""What this build is and runs on, for bug reports: `lampfast.config`."""

import platform

import torch

from lampfast import _core


def config() -> dict[str, str | int | bool | list[str]]:
    """The versions, the instruction set, the threads and the devices.

    Example:
        >>> import lampfast
        >>> lampfast.config()["instruction_set"] in {"baseline", "avx2", "avx512"}
        True

    Returns:
        `version` of lampfast; `instruction_set` of the kernels, the best that the processor has
        unless the environment variable LAMPFAST_ISA names another; `threads`, those of torch;
        `cuda_built`, whether this build has the CUDA engine, and `cuda_usable`, whether it finds a
        GPU and a driver that is new enough; `devices`, what the machine has, whether or not this
        build has an engine for it; the versions of `torch` and `python`; and the `platform`.

    Raises:
        RuntimeError: LAMPFAST_ISA names an instruction set that the processor does not have.
    """
    return {
        "version": _core.__version__,
        "instruction_set": _core.instruction_set(),
        "threads": torch.get_num_threads(),
        "cuda_built": _core.cuda_built,
        "cuda_usable": _core.cuda_usable(),
        "devices": [
            "cpu",
            *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())),
        ],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
