"""What guesses at further tokens save where text repeats its prompt, and cost where nothing repeats.

`python -m bench.speculation [--quick] [--threads N] [--drafts N]`, SmolLM2-135M in this process, one engine with
guesses and one without, in turn. Gate: with float32 every answer has the same tokens with and without; in the timed
runs, whose dtype is the machine's own, another batch shape may round an almost equal pair of tokens otherwise: counted.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.in_process import model_path
from bench.record import Result, write
from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.engine.start import start
from lorafleet_runtime.frontend.tokenizer import ModelTokenizer, load_tokenizer
from lorafleet_runtime.protocol import AddRequest, Sampling

TEXT = (
    "The council met on Tuesday to discuss the new bridge over the river Ouse. Engineers from Halden & Sons presented "
    "three designs: a steel arch of 210 metres, a cable-stayed bridge of 240 metres, and a low concrete viaduct on "
    "eleven piers. The mayor, Ingrid Solberg, preferred the arch because it needs no pier in the water, but the "
    "treasurer warned that it costs 14.6 million crowns more than the viaduct. Fishermen asked that work stop between "
    "April and June, when salmon pass. A vote was put off until 9 May."
)
TASKS = {"copies": "Repeat this text word for word.", "sums up": "Sum this text up in its own words."}
QUESTIONS = (
    "Explain how bread is made.", "Write a story about a lighthouse.", "What is a prime number? Give examples.",
    "Describe a farmer's day.", "How do vaccines work?", "Write an email asking for a refund.", "Why is the sky blue?",
    "List ten animals and say something about each.",
)  # fmt: skip
LENGTH = 110
KINDS = ("copies", "sums up", "prose", "noise")


@dataclass(frozen=True, slots=True)
class Run:
    """Outputs by request; tokens a second and a step, from when all have their first token on."""

    outputs: list[list[int]]
    speed: float
    per_step: float


@dataclass(frozen=True, slots=True)
class Bench:
    tokenizer: ModelTokenizer
    engine: Engine
    plain: Engine

    def requests(self, kind: str, count: int, salt: int) -> list[AddRequest]:
        """Of one kind, each with a prompt of its own."""
        rng = random.Random(salt)
        made = []
        for i in range(count):
            sampling = Sampling(max_tokens=LENGTH, temperature=0)
            if kind in TASKS:
                prompt = self._chat(f"{TASKS[kind]}\nItem {salt}.{i}: {TEXT}", f"Item {salt}.{i}:")
            elif kind == "prose":
                prompt = self._chat(f"{QUESTIONS[i % len(QUESTIONS)]} ({salt}.{i})", "")
                sampling = Sampling(max_tokens=LENGTH, temperature=0.8, seed=i)
            else:
                prompt = [rng.randrange(1000, 40000) for _ in range(100)]
                sampling = Sampling(max_tokens=LENGTH, temperature=1.0, seed=i)
            made.append(AddRequest(f"{kind} {salt}.{i}", prompt, sampling))
        return made

    def _chat(self, asked: str, begun: str) -> list[int]:
        turn = f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n{begun}"
        return self.tokenizer.encode(turn, add_special_tokens=False)


def run(engine: Engine, requests: Sequence[AddRequest]) -> Run:
    """All at once, to their ends."""
    outputs: dict[str, list[int]] = {request.request_id: [] for request in requests}

    def step() -> None:
        for delta in engine.step():
            if delta.error:
                sys.exit(f"the engine refused a request: {delta.error}")
            outputs[delta.request_id] += delta.token_ids

    for request in requests:
        engine.handle(request)
    while not all(outputs.values()):
        step()
    before, steps = sum(map(len, outputs.values())), engine.state().counters.steps
    begun = time.perf_counter()
    while engine.has_work:
        step()
    seconds = time.perf_counter() - begun
    made = sum(map(len, outputs.values())) - before
    return Run(list(outputs.values()), made / seconds, made / (engine.state().counters.steps - steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, nothing written")
    parser.add_argument("--threads", type=int, default=0, help="the engines'; 0: measured")
    parser.add_argument("--drafts", type=int, default=8, help="guesses a request and step at most")
    arguments = parser.parse_args()
    _gate(_bench("float32", arguments.threads, arguments.drafts))
    bench = _bench("auto", arguments.threads, arguments.drafts)
    results = []
    for kind in KINDS:
        for count in (1, 8):
            results += _compared(bench, kind, count, 2 if arguments.quick else 7)
    write(results, quick=arguments.quick)


def _bench(dtype: str, threads: int, drafts: int) -> Bench:
    engines = [
        start(
            EngineConfig(
                str(model_path()), "smollm2", dtype=dtype, max_model_len=512, memory_bytes=2**29, threads=threads,
                overlap="off", speculate=most,  # steps are counted one by one
            ),
            lambda message, fraction: None,
        )
        for most in (drafts, 0)
    ]  # fmt: skip
    return Bench(load_tokenizer(str(model_path())), *engines)


def _gate(bench: Bench) -> None:
    for kind in KINDS:
        requests = bench.requests(kind, 4, 1000)
        if run(bench.engine, requests).outputs != run(bench.plain, requests).outputs:
            sys.exit(f"{kind}: guesses change what is said: nothing was measured")
    counters = bench.engine.state().counters
    if not 0 < counters.accepted_tokens < counters.draft_tokens:
        sys.exit(f"guesses were never right, or never wrong: {counters}: nothing was measured")
    bench.engine.close()
    bench.plain.close()
    right = f"{counters.accepted_tokens} of {counters.draft_tokens} guesses were right"
    print(f"gate passed: {right}, all answers the same", flush=True)


def _compared(bench: Bench, kind: str, count: int, repeats: int) -> list[Result]:
    """In turn, so that what else the machine does hits both."""
    guessed, plain, same = [], [], 0
    for at in range(repeats):
        requests = bench.requests(kind, count, at)
        guessed.append(run(bench.engine, requests))
        plain.append(run(bench.plain, requests))
        same += sum(a == b for a, b in zip(guessed[-1].outputs, plain[-1].outputs, strict=True))
    ratio = statistics.median(a.speed / b.speed for a, b in zip(guessed, plain, strict=True))
    goal = {"copies": 2.0 if count == 1 else 1.5, "noise": 0.97}.get(kind)
    case = f"{kind}, {count} at once"
    return [
        Result("speculation", case, "decode tokens a second", statistics.median(each.speed for each in guessed),
               "tokens/s", statistics.median(each.speed for each in plain), ratio,
               f">= {goal:g}x" if goal else "", ratio >= goal if goal else None, repeats),
        Result("speculation", case, "tokens a step", statistics.median(each.per_step for each in guessed), "",
               statistics.median(each.per_step for each in plain), repeats=repeats),
        Result("speculation", case, "answers with the same tokens", same / (count * repeats), "", repeats=repeats),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
