"""From settings to a running engine: read the weights, choose dtype and threads by measuring, size the pool."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.core.fairness.counters import CounterTable
from lorafleet_runtime.core.fairness.policies import read_spec
from lorafleet_runtime.core.host_tier import HostTier
from lorafleet_runtime.core.pages import PAGE_TOKENS, pages_for_tokens
from lorafleet_runtime.core.room import Room
from lorafleet_runtime.core.scheduler import Limits
from lorafleet_runtime.engine.disk_tier import DiskTier
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.engine.memory import available_bytes, give_back
from lorafleet_runtime.engine.threads import available_cores, choose_threads
from lorafleet_runtime.errors import ConfigError
from lorafleet_runtime.model.calibration import best_dtype, choose_forms
from lorafleet_runtime.model.checkpoint import load_weights, read_config
from lorafleet_runtime.model.config import DecoderConfig
from lorafleet_runtime.model.decoder import Decoder, parameter_count
from lorafleet_runtime.model.threads import set_threads

DEFAULT_HOST_SHARE = 0.25
"""Of the memory that is available beside the pool, for adapters' weights."""
DEFAULT_MEMORY_SHARE = 0.25
"""Of the memory that is available after loading; a laptop has other things to do."""


def start(config: EngineConfig, progress: Callable[[str, float], None]) -> Engine:
    """Load the base model and make its engine. `progress(message, fraction)` is called as it goes.

    Raises ConfigError when the settings do not fit the model or the machine, and the checkpoint reader's errors.
    """
    torch.set_grad_enabled(False)
    path = Path(config.model)
    progress("reading the model's configuration", 0.0)
    decoder_config = read_config(path)
    max_model_len = _max_model_len(config, decoder_config)
    set_threads(config.threads or 1)
    dtype = best_dtype() if config.dtype == "auto" else getattr(torch, config.dtype)
    weights = load_weights(path, decoder_config, dtype, lambda f: progress("loading weights", 0.9 * f))
    parameters = parameter_count(weights)
    model = Decoder(decoder_config, weights, max_model_len)
    progress("measuring what is fastest on this machine", 0.9)
    set_threads(config.threads or available_cores())
    choose_forms(model)  # first: in another form, more threads may look useless
    if not config.threads:
        set_threads(choose_threads(model))
    total_pages = _total_pages(config, decoder_config, model.dtype, max_model_len)
    limits = Limits(max_model_len, config.max_num_seqs, config.max_batched_tokens)
    give_back()
    table = CounterTable(config.incarnation or "own")
    room = Room(total_pages, max_model_len, prefix_caching=config.prefix_caching)
    host = HostTier(config.host_memory_bytes or int(DEFAULT_HOST_SHARE * available_bytes()))
    return Engine(
        model, limits, room, host, DiskTier(config.disk), config.max_lora_rank, parameters, read_spec(config.fairness),
        table,
    )  # fmt: skip


def _max_model_len(config: EngineConfig, decoder: DecoderConfig) -> int:
    if config.max_model_len > decoder.max_position_embeddings:
        raise ConfigError(
            f"--max-model-len {config.max_model_len} is more than the {decoder.max_position_embeddings} positions that "
            f"{config.model} was made for"
        )
    return config.max_model_len or decoder.max_position_embeddings


def _total_pages(config: EngineConfig, decoder: DecoderConfig, dtype: torch.dtype, max_model_len: int) -> int:
    page_bytes = decoder.num_layers * PAGE_TOKENS * 2 * decoder.kv_dim * dtype.itemsize
    memory = config.memory_bytes or int(DEFAULT_MEMORY_SHARE * available_bytes())
    pages, needed = memory // page_bytes, pages_for_tokens(max_model_len)
    if pages < needed:
        raise ConfigError(
            f"--memory {memory} bytes is {pages} pages of {page_bytes} bytes; one sequence of "
            f"--max-model-len {max_model_len} needs {needed}: raise --memory to "
            f"{needed * page_bytes} or lower --max-model-len"
        )
    return int(pages)
