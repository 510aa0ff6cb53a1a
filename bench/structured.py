"""What output of a given form costs: for the rows that have one, for those beside them, and for the first token.

`python -m bench.structured [--quick] [--threads N]`, SmolLM2-135M in this process. Gate: every answer obeys its schema,
and the free rows' tokens are those of a batch without constraints."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import jsonschema

from bench.in_process import model_path
from bench.record import Result, write
from bench.structured_masks import mask_results
from bench.structured_schemas import PERSON, person_named
from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.constraints.constraint import Constraint, Vocabulary
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.engine.start import start
from lorafleet_runtime.frontend.tokenizer import load_tokenizer
from lorafleet_runtime.protocol import AddRequest, Sampling

ROWS, CONSTRAINED = 32, 8
PROMPT = "Invent a person and describe them as JSON.\n"


@dataclass
class Run:
    """Tokens by request; of the steps in which all of them decode, the seconds and the tokens made."""

    outputs: list[list[int]]
    steps: list[float] = field(default_factory=list)
    tokens: int = 0

    @property
    def speed(self) -> float:
        """Tokens a second, were every step as long as the median: what else the machine does makes some longer."""
        return self.tokens / (statistics.median(self.steps) * len(self.steps))


@dataclass
class Bench:
    engine: Engine
    vocabulary: Vocabulary
    prompt: list[int]
    results: list[Result] = field(default_factory=list)
    asked: int = 0

    def request(self, tokens: int, schema: object | None, seed: int) -> AddRequest:
        """A request that writes so many tokens, or until its schema's text has ended."""
        self.asked += 1
        constraint = None if schema is None else Constraint("json", json.dumps(schema))
        ends = () if schema is None else self.vocabulary.ends
        sampling = Sampling(max_tokens=tokens, temperature=0, seed=seed, stop_token_ids=ends, constraint=constraint)
        prompt = [*self.prompt, *(1000 + (seed * 131 + i) % 40000 for i in range(8))]
        return AddRequest(f"{self.asked}", prompt, sampling)

    def run(self, requests: Sequence[AddRequest]) -> Run:
        outputs: dict[str, list[int]] = {request.request_id: [] for request in requests}
        found = Run(list(outputs.values()))
        for request in requests:
            self.engine.handle(request)
        while self.engine.has_work:
            decoding = all(outputs.values())
            begun = time.perf_counter()
            deltas = self.engine.step()
            if decoding and len(deltas) == len(requests):
                found.steps.append(time.perf_counter() - begun)
                found.tokens += sum(len(delta.token_ids) for delta in deltas)
            for delta in deltas:
                if delta.error:
                    sys.exit(f"the engine refused a request: {delta.error}")
                outputs[delta.request_id] += delta.token_ids
        return found

    def text(self, tokens: Sequence[int]) -> str:
        return b"".join(self.vocabulary.tokens[token] for token in tokens).decode()

    def first_token(self, schema: object | None, seed: int) -> float:
        """Seconds from a request to its first token, alone on the engine."""
        self.engine.handle(self.request(1, schema, seed))
        begun = time.perf_counter()
        while not self.engine.step():
            time.sleep(0)
        return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, nothing written")
    parser.add_argument("--threads", type=int, default=0, help="the engine's; 0: measured")
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(str(model_path()))
    config = EngineConfig(
        str(model_path()), "smollm2", max_model_len=512, memory_bytes=2**29, threads=arguments.threads,
        overlap="off",  # steps are timed one by one
    )  # fmt: skip
    engine = start(config, lambda message, fraction: None)
    bench = Bench(engine, tokenizer.vocabulary, tokenizer.encode(PROMPT, add_special_tokens=True))
    engine.handle(bench.vocabulary)
    repeats = 2 if arguments.quick else 7
    _gate(bench)
    _first_tokens(bench, 3 * repeats)
    _throughput(bench, repeats)
    _foreseen(bench, repeats)
    engine.close()
    text = json.dumps(PERSON["example"])
    masks = mask_results(bench.vocabulary, tokenizer.encode(text, add_special_tokens=False), repeats)
    write([*bench.results, *masks], quick=arguments.quick, packages=("torch", "llguidance"))


def _gate(bench: Bench) -> None:
    free = [bench.request(24, None, seed) for seed in range(8)]
    alone = bench.run(free).outputs
    bound = [bench.request(300, PERSON["schema"], seed) for seed in range(4)]
    mixed = bench.run([*(bench.request(24, None, seed) for seed in range(8)), *bound]).outputs
    for tokens in mixed[8:]:
        jsonschema.validate(json.loads(bench.text(tokens)), PERSON["schema"])
    same = _compare(alone, mixed[:8], "beside constrained ones")
    print(f"gate passed: 4 answers obey their schema, {same} of 8 free rows are the same beside them", flush=True)


def _compare(alone: list[list[int]], other: list[list[int]], where: str) -> int:
    """How many rows say the same. Another batch shape rounds differently in bfloat16: then two almost equal tokens may
    trade places."""
    same = sum(a == b for a, b in zip(alone, other, strict=True))
    if same < 6:
        sys.exit(f"only {same} of {len(alone)} rows say the same {where}: nothing was measured")
    return same


def _first_tokens(bench: Bench, repeats: int) -> None:
    """A cached schema is one that an earlier request had. In turn, so that what else the machine does hits all."""
    free, cached, new = [], [], []
    for at in range(repeats):
        free.append(bench.first_token(None, 100 + at))
        cached.append(bench.first_token(PERSON["schema"], 100 + at))
        new.append(bench.first_token(person_named(f"field{at}"), 100 + at))
    base = statistics.median(free)
    for case, times, goal in (("cached schema", cached, 5.0), ("new schema", new, 50.0)):
        extra = 1e3 * (statistics.median(times) - base)
        bench.results.append(
            Result("structured", f"first token, {case}", "more than without a constraint", extra, "ms", 1e3 * base,
                   goal=f"<= {goal:g} ms", met=extra <= goal, repeats=repeats)
        )  # fmt: skip


def _throughput(bench: Bench, repeats: int) -> None:
    """Decode steps of 32 rows of which 8 have a constraint, against 32 free ones, alternately."""
    tokens = 48
    open_ended = {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 100}
    medians: dict[int, list[float]] = {0: [], CONSTRAINED: []}
    for at in range(repeats):
        for constrained, found in medians.items():
            schemas = [open_ended] * constrained + [None] * (ROWS - constrained)
            run = bench.run([bench.request(tokens, schema, 10 * at + i) for i, schema in enumerate(schemas)])
            found.append(run.speed)
    speeds = {count: statistics.median(found) for count, found in medians.items()}
    ratio = speeds[CONSTRAINED] / speeds[0]
    bench.results.append(
        Result("structured", f"{CONSTRAINED} of {ROWS} rows constrained", "decode tokens a second",
               speeds[CONSTRAINED], "tokens/s", speeds[0], ratio, ">= 0.95 of free rows alone", ratio >= 0.95, repeats)
    )  # fmt: skip


def _foreseen(bench: Bench, repeats: int) -> None:
    """Whole answers by a schema of fields, whose names must come, with and without knowing that beforehand, in turn."""
    constraints = bench.engine._constraints
    foreseen = constraints.foreseen
    steps: dict[bool, list[float]] = {False: [], True: []}
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for at in range(repeats):
        said = []
        for ahead in (False, True):
            constraints.foreseen = foreseen if ahead else dict  # type: ignore[method-assign]
            before, begun = bench.engine.state().counters.steps, time.perf_counter()
            said.append(bench.run([bench.request(300, PERSON["schema"], 10 * at + i) for i in range(CONSTRAINED)]))
            seconds[ahead].append(time.perf_counter() - begun)
            steps[ahead].append(bench.engine.state().counters.steps - before)
        _compare(said[0].outputs, said[1].outputs, "where what must come is known beforehand")
    for metric, unit, found in (("steps", "steps", steps), ("seconds", "s", seconds)):
        with_, without = statistics.median(found[True]), statistics.median(found[False])
        bench.results.append(
            Result("structured", f"{CONSTRAINED} answers, what must come known", metric, with_, unit, without,
                   with_ / without, repeats=repeats)
        )  # fmt: skip


if __name__ == "__main__":
    main()
