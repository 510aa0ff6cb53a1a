"""The command lines of docs/contracts.md, Processes on one machine. Pure; no secret is ever in them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lorafleet_operator.core.objects import Artifact, BaseModel
from lorafleet_operator.core.runtime_arguments import engine_arguments

RUNTIME_VARIABLE = "LORAFLEET_RUNTIME_COMMAND"
GATEWAY_VARIABLE = "LORAFLEET_GATEWAY_COMMAND"


def program(env: Mapping[str, str], variable: str, module: str) -> tuple[str, ...]:
    """The command in `variable` (for another build of that part), else this interpreter's `module`."""
    chosen = env.get(variable)
    return tuple(shlex.split(chosen)) if chosen else (sys.executable, "-m", module)


def runtime_command(
    command: tuple[str, ...], base: BaseModel, model: Path, *, host: str, port: int, admin_port: int, log_format: str
) -> list[str]:
    """The argv of one replica of `base` with its weights at `model`."""
    argv = [*command, "serve", "--model", str(model), "--served-name", base.served_name]
    argv += ["--host", host, "--port", str(port), "--admin-port", str(admin_port)]
    return [*argv, *engine_arguments(base), "--log-format", log_format, "--exit-with-parent"]


def gateway_command(command: tuple[str, ...], fleet: Path, *, host: str, port: int, log_format: str) -> list[str]:
    """The argv of the gateway over the fleet documents in `fleet`."""
    where = ["--fleet", str(fleet), "--host", host, "--port", str(port)]
    return [*command, "serve", *where, "--log-format", log_format, "--exit-with-parent"]


def model_path(artifact: Artifact) -> Path:
    """What `--model` names: the one GGUF file, or the folder that holds the artifact's files."""
    first = Path(unquote(urlsplit(artifact.files[0].url).path))
    return first if first.suffix.lower() == ".gguf" else first.parent
