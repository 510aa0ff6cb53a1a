"""Where what this machine has made for itself is kept from one start to the next."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(variable: str, name: str) -> Path:
    """What the environment's `variable` says, or `lorafleet/name` in the user's cache folder."""
    chosen = os.environ.get(variable)
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorafleet" / name
