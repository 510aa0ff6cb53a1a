"""Before `bench.cuda` times anything: on this device an engine on Triton's kernels says what plain torch says."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from bench.cuda_engines import Engines, checked, kernels, loaded
from bench.cuda_setup import Scale, write_model
from bench.kernels_gate import Finding
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.model.config import LORA_TARGETS
from lorafleet_runtime.model.tiny import random_adapter, save_adapter
from lorafleet_runtime.protocol import AddRequest, Sampling, TokenLogprobs

ALLOWED = {"float32": 2e-3, "float16": 0.05, "bfloat16": 0.25}
"""Of a logarithm of a probability, by dtype: logits of a few units are rounded to these parts of them on the way."""
PROMPTS = ((None, 1), ("x", 9), ("y", 21), ("x", 2), (None, 14), ("y", 5))
"""Adapters, and tokens."""
TOKENS = 5
Said = Mapping[str, Sequence[TokenLogprobs]]


def engine_findings(folder: Path, scale: Scale, device: torch.device) -> list[Finding]:
    """A batch of requests on two adapters and on none, prompts and decodes mixed. The control: each adapter has the
    other's weights."""
    model = write_model(folder / "model", scale.config, getattr(torch, scale.dtype), torch.device("cpu"))
    adapters = [
        save_adapter(folder / f"{seed}", random_adapter(scale.config, rank, LORA_TARGETS, seed, strength=2.0))
        for seed, rank in enumerate((5, 16))
    ]
    engines = Engines(scale, model, device)
    try:
        with kernels("reference"):
            expected = says(engines.get(memory=scale.memory), adapters, scale)
        with kernels("triton"):
            engine = engines.get(memory=scale.memory, anew=True)
            got, wrong = says(engine, adapters, scale), says(engine, adapters[::-1], scale)
    finally:
        engines.drop()
    name = f"an engine on {device.type} in {scale.dtype}, {len(PROMPTS)} requests, {TOKENS} tokens each"
    return [Finding(name, difference(expected, got, scale.dtype), difference(expected, wrong, scale.dtype))]


def says(engine: Engine, adapters: Sequence[Path], scale: Scale) -> Said:
    """What every request gets, with its two best tokens."""
    rng = random.Random(3)
    said: dict[str, list[TokenLogprobs]] = {}
    with loaded(engine, "gate", adapters, 2) as names:
        known = dict(zip("xy", names, strict=True))
        for number, (adapter, length) in enumerate(PROMPTS):
            prompt = [rng.randrange(scale.config.vocab_size) for _ in range(length)]
            sampling = Sampling(max_tokens=TOKENS, temperature=0, logprobs=2)
            engine.handle(AddRequest(f"{number}", prompt, sampling, known[adapter] if adapter else None))
        while engine.has_work:
            for delta in checked(engine.step()):
                said.setdefault(delta.request_id, []).extend(delta.logprobs)
    return said


def difference(expected: Said, got: Said, dtype: str) -> float:
    """The largest, in parts of what is allowed. Another token is allowed where the expected one led by less; what
    follows it is another text, and not compared."""
    allowed, found = ALLOWED[dtype], [0.0]
    for request, tokens in expected.items():
        if len(got[request]) != len(tokens):
            return math.inf
        for one, other in zip(tokens, got[request], strict=True):
            if one.token_id != other.token_id:
                lead = one.logprob - max(value for token, value in one.top if token != one.token_id)
                found.append(lead / allowed if lead < allowed else math.inf)
                break
            found.append(abs(one.logprob - other.logprob) / allowed)
    return math.inf if any(map(math.isnan, found)) else max(found)
