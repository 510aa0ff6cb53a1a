"""From settings to a running engine: read the weights, choose dtype and threads by measuring, size the pool."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import structlog
import torch

from lorafleet_kernels.reference_fp8 import FP8_SIZE
from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.core.fairness.counters import CounterTable
from lorafleet_runtime.core.fairness.policies import read_spec
from lorafleet_runtime.core.host_tier import HostTier
from lorafleet_runtime.core.limits import Limits
from lorafleet_runtime.core.pages import pages_for_tokens
from lorafleet_runtime.core.room import Room
from lorafleet_runtime.engine.adapters.disk_tier import DiskTier
from lorafleet_runtime.engine.adapters.loader import AdapterLoader, AdapterReader, as_it_is
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.engine.gpu.device import device_for
from lorafleet_runtime.engine.gpu.memory import best_dtype_of_card, check_weights_fit, pool_bytes
from lorafleet_runtime.engine.gpu.page_locked import PageLocking
from lorafleet_runtime.engine.load import load_rank
from lorafleet_runtime.engine.memory import available_bytes, give_back, keep_freed
from lorafleet_runtime.engine.pool import kv_dtype_of, page_bytes, page_elements
from lorafleet_runtime.engine.ranks.disk import RankedDisk
from lorafleet_runtime.engine.ranks.loader import RankedLoader
from lorafleet_runtime.engine.ranks.ranks import Ranks
from lorafleet_runtime.engine.ranks.runner import RankedRunner
from lorafleet_runtime.engine.runner import Runner
from lorafleet_runtime.engine.threads import available_cores, choose_threads
from lorafleet_runtime.errors import ConfigError
from lorafleet_runtime.model.base_weights import BaseWeights
from lorafleet_runtime.model.calibration import best_dtype, choose_forms
from lorafleet_runtime.model.checkpoint import read_config
from lorafleet_runtime.model.checkpoint_weights import CheckpointWeights
from lorafleet_runtime.model.config import DecoderConfig
from lorafleet_runtime.model.decoder import Decoder
from lorafleet_runtime.model.decoder_weights import DecoderWeights
from lorafleet_runtime.model.lora import grain_for
from lorafleet_runtime.model.on_demand import take
from lorafleet_runtime.model.parallel import Shard, check_ranks
from lorafleet_runtime.model.threads import set_threads, threads
from lorafleet_runtime.model.weights import expected_shapes

log = structlog.get_logger("engine")

DEFAULT_HOST_SHARE = 0.25
"""Of the memory that is available beside the pool, for adapters' weights."""
DEFAULT_MEMORY_SHARE = 0.25
"""Of the memory that is available after loading; a laptop has other things to do."""


def start(
    config: EngineConfig,
    progress: Callable[[str, float], None],
    ranks: Ranks | None = None,
    make_room: Callable[..., Room] = Room,
) -> Engine:
    """Load the base model and make its engine. `progress(message, fraction)` is called as it goes. `ranks` are the
    other processes, if they have been started; the engine ends them. `make_room` is another pool than the product's,
    for benches that compare.

    Raises ConfigError when the settings do not fit the model or the machine, RankDied, and the checkpoint reader's
    errors.
    """
    torch.set_grad_enabled(False)
    keep_freed()
    try:
        progress("reading the model's configuration", 0.0)
        decoder_config = read_config(Path(config.model))
        check_ranks(decoder_config, config.tensor_parallel, config.partition)
        if ranks is None and config.tensor_parallel > 1:
            ranks = Ranks(config.tensor_parallel, lambda reason: None)
        return _start(_decided(config, decoder_config), decoder_config, progress, ranks, make_room)
    except BaseException:
        if ranks is not None:
            ranks.close()
        raise


def _decided(config: EngineConfig, decoder_config: DecoderConfig) -> EngineConfig:
    """The settings with what all ranks must have alike: dtype, context, and, of several ranks, threads of each."""
    set_threads(config.threads or 1)
    config = replace(config, device=device_for(config))
    dtype = config.dtype
    if dtype == "auto":
        best = best_dtype() if config.device == "cpu" else best_dtype_of_card()
        dtype = str(best).removeprefix("torch.")
    config = replace(config, dtype=dtype, max_model_len=_max_model_len(config, decoder_config))
    if config.tensor_parallel == 1:
        return config
    return replace(config, threads=config.threads or max(1, available_cores() // config.tensor_parallel))


def _start(
    config: EngineConfig, decoder_config: DecoderConfig, progress: Callable[[str, float], None], ranks: Ranks | None,
    make_room: Callable[..., Room],
) -> Engine:  # fmt: skip
    if ranks is not None:
        ranks.load(config)
    shard = Shard(0, config.tensor_parallel)
    if config.device == "cuda":
        check_weights_fit(config, decoder_config)
    model = load_rank(config, decoder_config, shard, lambda f: progress("loading weights", 0.9 * f))
    kv = kv_dtype_of(config.kv_dtype, model.dtype)
    if kv != model.dtype:
        _check_kv(model)
    _check_adapter_dtype(config, model)
    progress("measuring what is fastest on this machine", 0.9)
    set_threads(config.threads or available_cores())
    choose_forms(model)  # first: in another form, more threads may look useless
    if not config.threads and config.device == "cpu":
        set_threads(choose_threads(model))
    if config.autotune and config.device == "cuda" and model.ops.aligns_adapters:
        from lorafleet_runtime.engine.gpu.tune import tune_at_start  # Triton takes a second, and is not everywhere

        progress("tuning kernels for this card", 0.92)
        tune_at_start(config, decoder_config)
    if ranks is not None:
        ranks.wait_until_loaded()
    total_pages = _total_pages(config, model.config, page_bytes(model.config, kv))
    limits = Limits(config.max_model_len, config.max_num_seqs, config.max_batched_tokens, config.speculate)
    give_back()
    elements = page_elements(model.config.kv_dim, kv, model.dtype)
    base: BaseWeights = DecoderWeights(model)
    if ranks is not None or config.device == "cuda":  # from the file: adapters are read on the host
        base = CheckpointWeights(Path(config.model), decoder_config, model.dtype)
    grain = grain_for(model.config, elements) if model.ops.aligns_adapters else 1
    keep = PageLocking() if config.device == "cuda" else as_it_is
    reader = AdapterReader(
        decoder_config, elements, model.dtype, config.max_lora_rank, shard, config.partition, base, grain, keep,
        fp8=config.adapter_dtype == "fp8",
    )  # fmt: skip
    runner, loader = _parts(config, model, total_pages, kv, reader, ranks)
    if config.device == "cuda":
        _prepare(runner, limits, config.max_lora_rank, progress)
    if config.memory_bytes and config.device == "cpu":  # asked for; a share that was chosen here is taken as it is used
        progress("taking the pool's memory", 0.95)
        take(runner.pool)
    table = CounterTable(config.incarnation or "own")
    parameters = sum(math.prod(shape) for shape in expected_shapes(decoder_config).values())
    room = make_room(total_pages, config.max_model_len, prefix_caching=config.prefix_caching)
    room.costs.page = runner.page_seconds()
    share = int(DEFAULT_HOST_SHARE * available_bytes()) // config.tensor_parallel
    host = HostTier(config.host_memory_bytes or share)
    disk = DiskTier(config.disk) if ranks is None else RankedDisk(config.disk, ranks)
    spec = read_spec(config.fairness)
    at_once = 2 if overlaps(config, available_cores(), threads()) else 1
    return Engine(runner, loader, limits, room, host, disk, config.max_lora_rank, parameters, spec, table, at_once)


def overlaps(config: EngineConfig, cores: int, computing: int) -> bool:
    """Whether a step is scheduled while the one before it runs: beside a GPU, or where a CPU has a core left. With all
    cores computing, that would take from a step what it saves it, and who comes meanwhile would wait for nothing."""
    if config.overlap == "auto":
        return config.tensor_parallel == 1 and (config.device == "cuda" or computing < cores)
    return config.overlap == "on"


def _parts(
    config: EngineConfig, model: Decoder, total_pages: int, kv: torch.dtype, reader: AdapterReader, ranks: Ranks | None
) -> tuple[Runner, AdapterLoader]:
    """What runs steps and what reads adapters, on one rank or on all."""
    if ranks is None and model.ops.aligns_adapters:
        from lorafleet_runtime.engine.gpu.runner import GpuRunner  # Triton takes a second, and is not everywhere

        fp8 = config.adapter_dtype == "fp8"
        return GpuRunner(model, total_pages, kv, fp8_adapters=fp8), AdapterLoader(reader)
    if ranks is None:
        return Runner(model, total_pages, kv=kv), AdapterLoader(reader)
    loader = RankedLoader(reader, ranks)
    return RankedRunner(model, total_pages, reader.partition, ranks, loader, kv), loader


def _check_adapter_dtype(config: EngineConfig, model: Decoder) -> None:
    if config.adapter_dtype == "fp8" and not model.ops.aligns_adapters:
        raise ConfigError(
            "--adapter-dtype fp8 needs Triton's kernels, which convert it as they read it; here plain operations "
            f"compute, on {model.embedding.device.type}: use a GPU with Triton installed and LORAFLEET_KERNELS unset, "
            "or --adapter-dtype auto"
        )


def _prepare(runner: Runner, limits: Limits, max_rank: int, progress: Callable[[str, float], None]) -> None:
    """Compile, load and capture what steps on a GPU start. Raises ConfigError where the largest does not fit."""
    from lorafleet_runtime.engine.gpu.runner import GpuRunner
    from lorafleet_runtime.engine.gpu.warm_up import warm_up

    if not isinstance(runner, GpuRunner):  # plain torch has nothing to compile
        return
    begun = time.perf_counter()
    progress("compiling kernels", 0.93)
    steps = warm_up(runner, limits, max_rank)
    warm = time.perf_counter()
    progress("capturing decode steps", 0.97)
    runner.use_graphs(limits.max_num_seqs, max_rank)
    captured = time.perf_counter() - warm
    log.info("the GPU's kernels are ready", steps=steps, seconds=round(warm - begun, 1), capture=round(captured, 1))


def _max_model_len(config: EngineConfig, decoder: DecoderConfig) -> int:
    if config.max_model_len > decoder.max_position_embeddings:
        raise ConfigError(
            f"--max-model-len {config.max_model_len} is more than the {decoder.max_position_embeddings} positions that "
            f"{config.model} was made for"
        )
    return config.max_model_len or decoder.max_position_embeddings


def _check_kv(model: Decoder) -> None:
    """Raises ConfigError where this model's keys and values cannot be of 8 bits here."""
    if not model.ops.take_fp8:
        raise ConfigError(
            "--kv-dtype fp8: the operations of CPUs keep keys and values in the model's type only: leave --kv-dtype at "
            "auto, or set LORAFLEET_KERNELS=reference for plain torch, which is several times slower"
        )
    if model.config.head_dim % FP8_SIZE:
        raise ConfigError(
            f"--kv-dtype fp8 needs heads of a multiple of {FP8_SIZE} features; this model's have "
            f"{model.config.head_dim}: leave --kv-dtype at auto"
        )


def _total_pages(config: EngineConfig, decoder: DecoderConfig, page_bytes: int) -> int:
    """Pages of one rank's pool; `decoder` is what one rank runs. All ranks are on this machine, in its memory."""
    if config.device == "cuda":
        memory = pool_bytes(config, decoder)
    else:
        memory = config.memory_bytes or int(DEFAULT_MEMORY_SHARE * available_bytes()) // config.tensor_parallel
    pages, needed = memory // page_bytes, pages_for_tokens(config.max_model_len)
    if pages < needed:
        chosen = config.device == "cuda" and not config.memory_bytes
        more = "take a larger card" if chosen else f"raise --memory to {needed * page_bytes}"
        raise ConfigError(
            f"{'what the card has left, ' if chosen else '--memory '}{memory} bytes{',' if chosen else ''} is {pages} "
            f"pages of {page_bytes} bytes; one sequence of --max-model-len {config.max_model_len} needs {needed}: "
            f"{more} or lower --max-model-len"
        )
    return int(pages)
