"""transformers + PEFT in a process of its own: one order a line in, one outcome a line out.

`python -m bench.peers.peft_worker MODEL NAME=ADAPTER ...`. Offline: no server, no streaming, every request known at
the start and equally long, which flatters it beside a server."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from bench.peers.peft_orders import Agreement, Generate, Generated, Judge, Order, Outcome


class Models:
    """The base model with all adapters, once per dtype that was asked for."""

    def __init__(self, path: Path, adapters: dict[str, Path]) -> None:
        self._path = path
        self._adapters = adapters
        self._made: dict[str, Any] = {}

    def of(self, dtype: str) -> Any:
        if dtype not in self._made:
            from peft import PeftModel
            from transformers import AutoModelForCausalLM

            base = AutoModelForCausalLM.from_pretrained(self._path, dtype=getattr(torch, dtype))
            (first, folder), *others = self._adapters.items()
            model = PeftModel.from_pretrained(base, folder, adapter_name=first)
            for name, folder in others:
                model.load_adapter(folder, adapter_name=name)
            self._made[dtype] = model.to(getattr(torch, dtype)).eval()
        return self._made[dtype]


@torch.inference_mode()
def generate(models: Models, order: Generate) -> Generated:
    """Run the requests as the mode says. Sets torch's threads."""
    torch.set_num_threads(order.threads)
    model = models.of(order.dtype)
    count = len(order.prompts)
    groups = {
        "mixed": [list(range(count))],
        "swap": [[i for i in range(count) if order.adapters[i] == name] for name in dict.fromkeys(order.adapters)],
        "single": [[i] for i in range(count)],
    }[order.mode]
    outputs: list[list[int]] = [[] for _ in range(count)]
    first, sent = [0.0] * count, [0.0] * count
    begun = time.perf_counter()
    for group in groups:
        before = time.perf_counter()
        stamp = _FirstToken()
        extra: dict[str, Any] = {}
        if order.mode == "mixed":
            extra = {"adapter_names": [order.adapters[i] for i in group]}
        else:
            model.set_adapter(order.adapters[group[0]])
        made = _batch(model, [order.prompts[i] for i in group], order.tokens, stamp, extra)
        for index, tokens in zip(group, made, strict=True):
            outputs[index], first[index], sent[index] = tokens, stamp.at - begun, before - begun
    return Generated(time.perf_counter() - begun, sent, first, outputs)


def _batch(
    model: Any, prompts: Sequence[Sequence[int]], tokens: int, stamp: _FirstToken, extra: dict[str, Any]
) -> list[list[int]]:
    width = max(map(len, prompts))
    made = model.generate(
        input_ids=torch.tensor([[2] * (width - len(p)) + list(p) for p in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        pad_token_id=2,
        logits_processor=[stamp],
        **extra,
    )
    return [row[width:] for row in made.tolist()]


class _FirstToken:
    """Notes when the first logits were there; changes nothing."""

    at = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.at = self.at or time.perf_counter()
        return scores


@torch.inference_mode()
def judge(models: Models, order: Judge) -> Agreement:
    """How many tokens of each output are the best one by PEFT, given what precedes them; "" is the base model.

    On one thread: this is not timed, and a second one can cost minutes on a busy machine."""
    torch.set_num_threads(1)
    model = models.of(order.dtype)
    agreed = []
    for prompt, output, adapter in zip(order.prompts, order.outputs, order.adapters, strict=True):
        ids = torch.tensor([[*prompt, *output[:-1]]])
        if adapter:
            model.set_adapter(adapter)
            logits = model(ids).logits
        else:
            with model.disable_adapter():
                logits = model(ids).logits
        best = logits[0, len(prompt) - 1 :].argmax(-1).tolist()
        agreed.append(sum(a == b for a, b in zip(best, output, strict=True)))
    return Agreement(agreed)


def main() -> None:
    warnings.simplefilter("ignore")
    path, *adapters = sys.argv[1:]
    models = Models(Path(path), {name: Path(folder) for name, folder in (a.split("=", 1) for a in adapters)})
    decode = msgspec.json.Decoder(Order).decode
    out, sys.stdout = sys.stdout, sys.stderr  # libraries print
    for line in sys.stdin:
        order = decode(line)
        outcome: Outcome = generate(models, order) if isinstance(order, Generate) else judge(models, order)
        out.write(msgspec.json.encode(outcome).decode() + "\n")
        out.flush()


if __name__ == "__main__":
    main()
