"""Which device an engine runs on; and where a GPU is there that cannot be used, why not."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import structlog
import torch

from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.errors import ConfigError

log = structlog.get_logger("engine")

DEVICE_FILES = ("nvidia[0-9]*", "dxg")
"""In /dev, where a driver has made a card known; the second is that of Windows' subsystem."""
DRIVER_VERSION = Path("/proc/driver/nvidia/version")
_TOO_OLD = re.compile(r"driver on your system is too old \(found version (\d+)\)")


def device_for(config: EngineConfig) -> str:
    """`cpu` or `cuda`. Raises ConfigError where a GPU is asked for and there is none that can be used; where one is
    there that nobody asked for, one log line says why it is left idle."""
    if config.device == "cpu" or config.tensor_parallel > 1:
        return "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, at the first look in a process: `why_none` has it again
        if torch.cuda.is_available():
            return "cuda"
    if config.device == "cuda":
        raise ConfigError(f"--device cuda: {why_none()}")
    if a_card_is_there():
        log.warning("a GPU is here that torch cannot use: this CPU computes", reason=why_none())
    return "cpu"


def why_none() -> str:
    """Why torch has no GPU here, and what to do."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return explained(f"{error}", torch.version.cuda, driver_version())
    return "torch sees no GPU here: look at `nvidia-smi`, and whether CUDA_VISIBLE_DEVICES hides it"


def explained(said: str, built_for: str | None, driver: str) -> str:
    """What torch `said` of it, in terms of what can be changed. `built_for`: the CUDA version of this torch."""
    if built_for is None:
        return f"this torch ({torch.__version__}) is built without CUDA: install one that is built with it"
    if found := _TOO_OLD.search(said):
        serves = f"{int(found[1]) // 1000}.{int(found[1]) % 1000 // 10}"  # 12080 is 12.8
        return (
            f"the NVIDIA driver{f' {driver}' if driver else ''} is too old: it serves CUDA {serves}, and this torch "
            f"({torch.__version__}) is built for CUDA {built_for}: install a newer driver, or a torch for CUDA {serves}"
        )
    if "no NVIDIA driver" in said:
        return (
            "torch sees no GPU here, as no NVIDIA driver answers: look at `nvidia-smi`, and whether the container was "
            "given the card"
        )
    return f"torch can use no GPU here ({said.splitlines()[0] if said else 'it does not say why'}): see `nvidia-smi`"


def a_card_is_there(folder: Path = Path("/dev")) -> bool:
    """Whether the system knows of a card, whatever torch says."""
    return any(True for name in DEVICE_FILES for _ in folder.glob(name))


def driver_version(path: Path = DRIVER_VERSION) -> str:
    """The kernel's driver, as 570.86.15; empty where it does not say."""
    try:
        found = re.search(r"\d+\.\d+(?:\.\d+)?", path.read_text())
    except OSError:
        return ""
    return found[0] if found else ""
