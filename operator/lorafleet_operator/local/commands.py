"""The command lines of docs/contracts.md, Processes on one machine. Pure; no secret is ever in them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lorafleet_operator.core.fairness import fairness_arguments
from lorafleet_operator.core.objects import Artifact, BaseModel

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
    engine = base.engine
    argv = [*command, "serve", "--model", str(model), "--served-name", base.served_name]
    argv += ["--host", host, "--port", str(port), "--admin-port", str(admin_port)]
    argv += ["--dtype", engine.dtype, "--max-model-len", str(engine.max_model_len)]
    argv += ["--max-num-seqs", str(engine.max_num_seqs), "--max-batched-tokens", str(engine.max_batched_tokens)]
    if engine.memory_bytes is not None:
        argv += ["--memory", str(engine.memory_bytes)]
    if engine.tensor_parallel != 1:
        argv += ["--tensor-parallel", str(engine.tensor_parallel)]
    argv += fairness_arguments(base.fairness)
    argv += ["--max-lora-rank", str(base.lora.max_rank), "--log-format", log_format, "--exit-with-parent"]
    return argv


def gateway_command(command: tuple[str, ...], fleet: Path, *, host: str, port: int, log_format: str) -> list[str]:
    """The argv of the gateway over the fleet documents in `fleet`."""
    where = ["--fleet", str(fleet), "--host", host, "--port", str(port)]
    return [*command, "serve", *where, "--log-format", log_format, "--exit-with-parent"]


def model_path(artifact: Artifact) -> Path:
    """What `--model` names: the one GGUF file, or the folder that holds the artifact's files."""
    first = Path(unquote(urlsplit(artifact.files[0].url).path))
    return first if first.suffix.lower() == ".gguf" else first.parent
