"""What `--model` may name: a path, or a file inside an installed Python package (`package://MODULE/FILE`)."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from lorafleet_runtime.errors import ConfigError

PACKAGE = re.compile(r"package://([A-Za-z_][A-Za-z0-9_]*)/(.+)")


def model_location(text: str) -> str:
    """The path that `text` names. Raises ConfigError; a path that does not exist is its reader's to refuse."""
    if "://" not in text:
        return text
    match = PACKAGE.fullmatch(text)
    if match is None:
        raise ConfigError(f"--model {text}: write a path, or package://MODULE/FILE")
    module, inside = match[1], Path(match[2])
    if inside.is_absolute() or ".." in inside.parts:
        raise ConfigError(f"--model {text}: the file must lie inside the package {module}")
    spec = importlib.util.find_spec(module)  # a top-level name is found without running the package's code
    roots = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not roots:
        raise ConfigError(f"--model {text}: Python package {module} is not installed here")
    for root in roots:
        if (Path(root) / inside).exists():
            return str(Path(root) / inside)
    raise ConfigError(f"--model {text}: the installed package {module} ({roots[0]}) has no file {inside}")
