"""The command line: `lorafleet-runtime serve`, `lorafleet-runtime tune`."""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from lorafleet_runtime import __version__
from lorafleet_runtime.config import (
    ADAPTER_DTYPES,
    DEVICES,
    DTYPES,
    KV_DTYPES,
    OVERLAPS,
    PARTITIONS,
    EngineConfig,
    parse_size,
)
from lorafleet_runtime.errors import ConfigError
from lorafleet_runtime.frontend.options import ServeOptions
from lorafleet_runtime.logs import configure_logs
from lorafleet_runtime.model_location import model_location


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exit codes: 0 ended as asked, 1 the engine failed, 2 wrong arguments."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = _parser().parse_args(given)
    try:
        code = _tune(parsed, given) if parsed.command == "tune" else _serve(parsed)
    except ConfigError as error:
        print(f"lorafleet-runtime: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(code)


def _serve(parsed: argparse.Namespace) -> int:
    options = _options(parsed)
    configure_logs(options.log_format)
    # Imported late: `--help` and a wrong flag should answer at once.
    from lorafleet_runtime.frontend.serve import serve

    if sys.platform == "win32":
        return asyncio.run(serve(options))
    import uvloop

    return uvloop.run(serve(options))


def _tune(parsed: argparse.Namespace, given: Sequence[str]) -> int:
    config = EngineConfig(
        model=model_location(parsed.model),
        served_name="tune",
        dtype=parsed.dtype,
        kv_dtype=parsed.kv_dtype,
        adapter_dtype=parsed.adapter_dtype,
        max_model_len=parsed.max_model_len,
        max_num_seqs=parsed.max_num_seqs,
        max_batched_tokens=parsed.max_batched_tokens,
        max_lora_rank=parsed.max_lora_rank,
    ).check()
    if parsed.seconds <= 0:
        raise ConfigError(f"--seconds {parsed.seconds} must be more than 0")
    configure_logs()
    try:
        from lorafleet_runtime.engine.gpu.tune import tune_command
    except ImportError as error:
        raise ConfigError(f"tune: there are no kernels to tune: Triton cannot be imported: {error}") from error
    return tune_command(config, parsed.seconds, parsed.missing, shlex.join(["lorafleet-runtime", *given]))


def _options(parsed: argparse.Namespace) -> ServeOptions:
    if bool(parsed.model) == parsed.model_from_operator:
        raise ConfigError("give --model or --model-from-operator")
    if parsed.model_from_operator and not parsed.served_name:
        raise ConfigError("--model-from-operator needs --served-name")
    config = EngineConfig(
        model=model_location(parsed.model),
        served_name=parsed.served_name or Path(parsed.model).name.removesuffix(".gguf"),
        dtype=parsed.dtype,
        device=parsed.device,
        kv_dtype=parsed.kv_dtype,
        max_model_len=parsed.max_model_len,
        max_num_seqs=parsed.max_num_seqs,
        max_batched_tokens=parsed.max_batched_tokens,
        memory_bytes=parse_size(parsed.memory) if parsed.memory else 0,
        max_lora_rank=parsed.max_lora_rank,
        threads=parsed.threads,
        prefix_caching=parsed.prefix_caching,
        host_memory_bytes=parse_size(parsed.host_memory, "--host-memory") if parsed.host_memory else 0,
        fairness=parsed.fairness,
        tensor_parallel=parsed.tensor_parallel,
        lora_partition=parsed.lora_partition,
        overlap=parsed.overlap,
        adapter_dtype=parsed.adapter_dtype,
        speculate=parsed.speculate,
        autotune=parsed.autotune,
    ).check()
    return ServeOptions(
        engine=config,
        host=parsed.host,
        port=parsed.port,
        admin_port=parsed.admin_port,
        log_format=parsed.log_format,
        exit_with_parent=parsed.exit_with_parent,
        drain_seconds=parsed.drain_seconds,
        adapters=tuple(_adapter(text) for text in parsed.adapter),
        serving_token=os.environ.get("LORAFLEET_SERVING_TOKEN", ""),
        admin_token=os.environ.get("LORAFLEET_ADMIN_TOKEN", ""),
        model_from_operator=parsed.model_from_operator,
        artifacts=Path(os.environ.get("LORAFLEET_ARTIFACTS") or "/artifacts"),
    )


def _adapter(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not separator or not name or not path:
        raise ConfigError(f"--adapter {text!r}: write it as ID=FOLDER")
    if not Path(path).is_dir():
        raise ConfigError(f"--adapter {name}: {path} is not a folder")
    return name, Path(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lorafleet-runtime", description="Serve one base model and its LoRA adapters."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="run one replica: OpenAI's API on one port, the admin API on another",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = serve.add_argument
    add(
        "--model",
        default="",
        help="a .gguf file or a folder with config.json and safetensors, or package://MODULE/FILE",
    )
    add("--model-from-operator", action="store_true", help="wait until the admin port is told where the model is")
    _add_bounds(serve)
    add("--served-name", help="what clients put into `model` (default: the model's file name)")
    add("--host", default="127.0.0.1", help="address of both ports")
    add("--port", type=int, default=8000, help="serving port; 0 picks a free one")
    add("--admin-port", type=int, default=8001, help="admin port; 0 picks a free one")
    add("--device", choices=DEVICES, default="auto", help="auto: a GPU where there is one")
    add("--memory", default="", help="each rank's page pool for KV and adapters, as 1Gi (default: a share of the free)")
    add("--host-memory", default="", help="bound of adapters kept beside the pool, as 2Gi, by rank; more are on disk")
    add("--prefix-caching", action=argparse.BooleanOptionalAction, default=True, help="keep prompts' KV for later ones")
    add("--threads", type=int, default=0, help="CPU threads of each rank; 0: measured, or the cores shared out")
    add("--tensor-parallel", type=int, default=1, metavar="N", help="spread the model over N ranks, processes here")
    add("--lora-partition", choices=PARTITIONS, default="replicated",
        help="adapters on several ranks: replicated needs no communication, slora keeps nothing twice")  # fmt: skip
    add("--overlap", choices=OVERLAPS, default="auto",
        help="schedule a step while the one before it runs; auto: where a core is left for that")  # fmt: skip
    add("--speculate", type=int, default=0, metavar="N",
        help="check up to N guesses at a request's further tokens in a step, by what it has read and said")  # fmt: skip
    add("--autotune", type=int, default=0, metavar="SECONDS",
        help="tune kernels at a start on a GPU where `lorafleet-runtime tune` has not; 0: never")  # fmt: skip
    add("--fairness", default="", metavar="JSON", help="how tenants share: a BaseModel's spec.fairness")
    add("--adapter", action="append", default=[], metavar="ID=FOLDER", help="load at start; may be repeated")
    add("--drain-seconds", type=float, default=20.0, help="how long SIGTERM waits for running requests")
    add("--log-format", choices=("console", "json"), default="console")
    add("--exit-with-parent", action="store_true", help="end when standard input ends")
    tune = commands.add_parser(
        "tune",
        help="measure the forms of kernels for a model on this machine's GPU, and keep the fastest",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    tune.add_argument("--model", required=True, help="as of `serve`; its configuration is enough")
    _add_bounds(tune)
    tune.add_argument("--seconds", type=float, default=180.0, help="about how long; what comes first matters most")
    tune.add_argument("--missing", action="store_true", help="only what is not known yet of this card")
    return parser


def _add_bounds(parser: argparse.ArgumentParser) -> None:
    """What a step may be, which is served and tuned for."""
    add = parser.add_argument
    add("--dtype", choices=DTYPES, default="auto", help="auto: what this device runs fastest")
    add("--kv-dtype", choices=KV_DTYPES, default="auto",
        help="of keys and values in the pool: auto: --dtype; fp8: a byte each, on GPUs")  # fmt: skip
    add("--adapter-dtype", choices=ADAPTER_DTYPES, default="auto",
        help="fp8: LoRA matrices take half the memory, on a GPU; auto: they have the model's type")  # fmt: skip
    add("--max-model-len", type=int, default=0, help="context in tokens; 0: the model's own")
    add("--max-num-seqs", type=int, default=64, help="requests in one batch")
    add("--max-batched-tokens", type=int, default=512, help="tokens of one step")
    add("--max-lora-rank", type=int, default=64, help="adapters of a higher rank are refused")
