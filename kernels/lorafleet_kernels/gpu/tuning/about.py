"""The circumstances of a run, which are stored beside what it found."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

UNKNOWN = "unknown"


def about_run(command: str, now: datetime | None = None) -> dict[str, str]:
    """Date, command, and what compiled and ran the kernels: versions, the driver, the commit of this source if any."""
    found = {"date": (now or datetime.now(UTC)).isoformat(timespec="seconds"), "command": command}
    found |= {name: _version(name) for name in ("lorafleet", "torch", "triton")}
    found["python"] = platform.python_version()
    found["driver"] = driver_version()
    found["commit"] = _said("git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD")
    return found


def driver_version() -> str:
    """Of the first GPU, as nvidia-smi says."""
    return _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return UNKNOWN


def _said(*command: str) -> str:
    """The first line of what a command prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return UNKNOWN
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else UNKNOWN
