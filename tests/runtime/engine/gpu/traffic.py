"""Requests that exercise an engine's kernels, and the adapters that they are for."""

from __future__ import annotations

import random

from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.model.tiny import tiny_config
from lorafleet_runtime.protocol import AddRequest, Sampling

CONFIG = tiny_config("qwen3")
"""With norms of q and k; two query heads a key-value head."""
TARGETS = {"attention": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj"),
           "few": ("v_proj", "down_proj")}  # fmt: skip
RANKS = {"attention": 3, "mlp": 8, "few": 1}


def serve(engine: Engine) -> dict[str, list[int]]:
    """Prompts of one token to more than a step's, on every adapter and on none; some begin with the same page."""
    rng = random.Random(1)
    shared = [rng.randrange(256) for _ in range(16)]
    outputs: dict[str, list[int]] = {}
    for index, (name, length) in enumerate([(None, 1), ("attention", 9), ("mlp", 30), ("few", 5), ("mlp", 2)]):
        prompt = [rng.randrange(256) for _ in range(length)]
        engine.handle(AddRequest(f"{index}", prompt, Sampling(max_tokens=3, temperature=0), name))
    for index in range(2):
        sampling = Sampling(max_tokens=2, temperature=0.7, seed=index)
        engine.handle(AddRequest(f"shared {index}", [*shared, index], sampling, "attention"))
    while engine.has_work:
        for delta in engine.step():
            assert not delta.error
            outputs.setdefault(delta.request_id, []).extend(delta.token_ids)
    return outputs
