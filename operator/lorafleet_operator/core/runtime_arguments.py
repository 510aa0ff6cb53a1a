"""BaseModel -> the runtime's command line in a pod. Pure; no secret is in it."""

from __future__ import annotations

from lorafleet_operator.core.fairness import fairness_arguments
from lorafleet_operator.core.objects import BaseModel

SERVING_PORT, ADMIN_PORT = 8000, 8001
IN_PODS = ("pvc", "file", "package")
"""The schemes of sources that pods read themselves."""


def arguments(base: BaseModel, drain: int) -> list[str]:
    """The runtime's command line in a pod. No secret is in it."""
    argv = ["serve", *model_arguments(base.source.uri), "--served-name", base.served_name]
    argv += ["--host", "0.0.0.0", "--port", str(SERVING_PORT), "--admin-port", str(ADMIN_PORT)]
    return [*argv, *engine_arguments(base), "--drain-seconds", str(drain), "--log-format", "json"]


def engine_arguments(base: BaseModel) -> list[str]:
    """What `.spec` says of the engine, the same in a pod and on one machine."""
    engine = base.engine
    argv = ["--dtype", engine.dtype, "--max-model-len", str(engine.max_model_len)]
    argv += ["--max-num-seqs", str(engine.max_num_seqs), "--max-batched-tokens", str(engine.max_batched_tokens)]
    if engine.memory_bytes is not None:
        argv += ["--memory", str(engine.memory_bytes)]
    if engine.tensor_parallel != 1:
        argv += ["--tensor-parallel", str(engine.tensor_parallel)]
    if base.lora.host_memory_bytes is not None:
        argv += ["--host-memory", str(base.lora.host_memory_bytes)]
    if not engine.prefix_caching:
        argv += ["--no-prefix-caching"]
    if engine.kv_dtype != "auto":
        argv += ["--kv-dtype", engine.kv_dtype]
    if engine.speculative_tokens:
        argv += ["--speculate", str(engine.speculative_tokens)]
    if engine.adapter_dtype != "auto":
        argv += ["--adapter-dtype", engine.adapter_dtype]
    return [*argv, *fairness_arguments(base.fairness), "--max-lora-rank", str(base.lora.max_rank)]


def model_argument(uri: str) -> str:
    """What `--model` is inside the pod: a volume's path for `pvc:`, a path of the image for `file:`."""
    scheme, _, rest = uri.partition(":")
    if scheme == "pvc":
        return "/artifacts/" + rest.removeprefix("//")
    if scheme == "file":
        return "/" + rest.lstrip("/")
    return uri


def model_arguments(uri: str) -> list[str]:
    """How the runtime learns where its model is: pods see volumes and their image, and are told of the rest."""
    return ["--model", model_argument(uri)] if uri.partition(":")[0] in IN_PODS else ["--model-from-operator"]
