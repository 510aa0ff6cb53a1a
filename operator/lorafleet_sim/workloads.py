"""Who asks for what, when: the VTC paper's suites (OSDI'24, section 5; the artifact's exp_suite), and small ones.

Times are seconds, lengths tokens. The same seed gives the same requests."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count, takewhile

REAL_COUNTS = (
    296, 262, 199, 120, 67, 66, 56, 46, 44, 43, 40, 36, 31, 26, 25, 23, 22, 22, 19, 19, 12, 11, 7, 3, 2, 2, 1,
)  # fmt: skip
"""Requests by client in the artifact's slice of LMSYS Chatbot Arena: 1,500 of 27."""


@dataclass(frozen=True, slots=True)
class Request:
    """`declared`: the most that it may be answered with, which is reserved; 0 for exactly `output`, as the paper's
    clients declare it. `cached`: prompt tokens that a prefix cache holds."""

    client: str
    at: float
    prompt: int
    output: int
    declared: int = 0
    cached: int = 0
    user: str = ""
    weight: float = 1.0
    adapter: str = ""
    rank: int = 0

    @property
    def most(self) -> int:
        return self.declared or self.output


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests by time, over `duration` seconds."""

    name: str
    requests: tuple[Request, ...]
    duration: float

    @property
    def clients(self) -> list[str]:
        return sorted({request.client for request in self.requests})


Times = Iterable[float]


def evenly(rate: float, until: float, since: float = 0.0) -> Iterator[float]:
    """`rate` a second, at equal distances."""
    return takewhile(lambda at: at < until, (since + i / rate for i in count()))


def poisson(rng: random.Random, rate: float, until: float, since: float = 0.0) -> Iterator[float]:
    """`rate` a second on average, at exponential distances."""
    at = since + rng.expovariate(rate)
    while at < until:
        yield at
        at += rng.expovariate(rate)


def ramp(low: float, high: float, until: float) -> Iterator[float]:
    """A rate that rises linearly from `low` to `high`: where ∫ rate is a whole number."""
    slope = (high - low) / until
    at = (math.sqrt(low * low + 2 * slope * i) / slope - low / slope for i in count())
    return takewhile(lambda when: when < until, at)


def on_off(times: Times, period: float) -> Iterator[float]:
    """Only what falls into the first of every two periods."""
    return (at for at in times if at // period % 2 == 0)


def workload(name: str, duration: float, *streams: Iterable[Request]) -> Workload:
    """Streams of requests, merged by time; what comes at once in the order of the streams."""
    requests = sorted((request for stream in streams for request in stream), key=lambda request: request.at)
    return Workload(name, tuple(requests), duration)


def _of(client: str, times: Times, prompt: int = 256, output: int = 256, weight: float = 1.0) -> Iterator[Request]:
    return (Request(client, at, prompt, output, weight=weight) for at in times)


def overload(seed: int = 0) -> Workload:
    """Two clients, both above their share."""
    return workload("overload", 360, _of("0", evenly(1.5, 360)), _of("1", evenly(3, 360)))


def overload_multi(seed: int = 0) -> Workload:
    """Eight clients at two rates, all above their share."""
    rates = [0.4] * 3 + [0.6] * 5
    return workload("overload-multi", 360, *(_of(str(i), evenly(rate, 360)) for i, rate in enumerate(rates)))


def weighted(seed: int = 0) -> Workload:
    """Rates of the run that the artifact ships: each above its share."""
    rates = (0.4, 0.8, 1.2, 1.6)
    streams = (_of(str(i), evenly(rate, 360), weight=i + 1.0) for i, rate in enumerate(rates))
    return workload("weighted", 360, *streams)


def proportional(seed: int = 0) -> Workload:
    """Two clients below their share, one above."""
    rates = (0.25, 0.5, 1.5)
    return workload("proportional", 600, *(_of(str(i), evenly(rate, 600)) for i, rate in enumerate(rates)))


def on_off_less(seed: int = 0) -> Workload:
    """One client bursty and below its share, one above."""
    return workload("on/off less", 600, _of("0", on_off(evenly(0.5, 600), 60)), _of("1", evenly(2, 600)))


def on_off_overload(seed: int = 0) -> Workload:
    """Two above their share, one of them every other minute."""
    return workload("on/off overload", 600, _of("0", on_off(evenly(2, 600), 60)), _of("1", evenly(3, 600)))


def poisson_on_off(seed: int = 0) -> Workload:
    """As `on_off_less`, with random arrivals and lengths."""
    rng = random.Random(seed)

    def lengths(client: str, times: Times) -> Iterator[Request]:
        return (Request(client, at, rng.randint(16, 512), rng.randint(16, 512)) for at in times)

    off = lengths("0", on_off(poisson(rng, 0.5, 600), 60))
    return workload("poisson on/off", 600, off, lengths("1", poisson(rng, 2, 600)))


def short_long(seed: int = 0) -> Workload:
    """Many short requests beside few long ones."""
    rng = random.Random(seed)
    short = _of("0", poisson(rng, 8, 600), 64, 64)
    return workload("short/long", 600, short, _of("1", poisson(rng, 1.5, 600)))


def short_long_2(seed: int = 0) -> Workload:
    """Long prompts with short answers beside the opposite."""
    rng = random.Random(seed)
    read = _of("0", poisson(rng, 8, 600), 512, 32)
    return workload("short/long 2", 600, read, _of("1", poisson(rng, 1.5, 600), 32, 512))


def increase(seed: int = 0) -> Workload:
    """One client steady below its share, one that rises beyond it."""
    return workload("increase", 600, _of("0", evenly(0.5, 600)), _of("1", ramp(0.2, 2.0, 600)))


def dist_shift(seed: int = 0) -> Workload:
    """Three phases of 300 s: one bursty below its share and one above; both at the share; one above again."""
    first = [*on_off(evenly(0.5, 300), 60), *evenly(1, 600, 300), *evenly(0.5, 900, 600)]
    second = [*evenly(2, 300), *evenly(1, 600, 300), *evenly(1.5, 900, 600)]
    return workload("dist_shift", 900, _of("0", first), _of("1", second))


def real(seed: int = 0) -> Workload:
    """1,500 requests of 27 clients in 600 s, from the counts and lengths of the artifact's trace, which is itself a
    resample. Prompts: log-normal, median 40, clipped to 2-1,021, mean 136; outputs: Weibull, median 211, clipped to
    2-977, mean 256. A client's rate changes every minute, by a factor of mean 1 (Gamma, shape 4), as people's does."""
    rng = random.Random(seed)

    def requests(client: str, number: int) -> Iterator[Request]:
        bursts = [rng.gammavariate(4.0, 0.25) for _ in range(10)]
        minutes = rng.choices(range(10), bursts, k=number)
        for at in sorted(60 * (minute + rng.random()) for minute in minutes):
            prompt = min(max(round(rng.lognormvariate(math.log(40), 1.72)), 2), 1021)
            output = min(max(round(rng.weibullvariate(279.0, 1.32)), 2), 977)
            yield Request(client, at, prompt, output)

    return workload("real", 600, *(requests(f"{i:02}", number) for i, number in enumerate(REAL_COUNTS)))


SUITES: dict[str, Callable[[int], Workload]] = {
    "real": real,
    "overload": overload,
    "overload-multi": overload_multi,
    "weighted": weighted,
    "proportional": proportional,
    "short/long": short_long,
    "short/long 2": short_long_2,
    "on/off less": on_off_less,
    "on/off overload": on_off_overload,
    "poisson on/off": poisson_on_off,
    "increase": increase,
    "dist_shift": dist_shift,
}


@dataclass(frozen=True, slots=True)
class Small:
    """A random workload in steps and few tokens, and the pool that it is meant for."""

    requests: list[Request]
    pool: int
    longest: int  # of its prompts
    clients: int


def small(seed: int, *, steps: int = 24, load: float = 2.0, weights: bool = False) -> Small:
    """2-5 clients, Poisson or ON/OFF, in a pool of 64-512 tokens; `load`: demand over what an engine with this pool
    gives, roughly. Lengths are a few tokens or up to half the pool."""
    rng = random.Random(seed)
    pool = rng.choice((64, 96, 128, 192, 256, 384, 512))
    clients = rng.randint(2, 5)
    requests: list[Request] = []
    longest = 1
    for index in range(clients):
        prompts, outputs = rng.choice((4, 16, pool // 2)), rng.choice((4, 16, pool // 2))
        # A request of p and q takes p + q tokens for q steps.
        occupied = (prompts + outputs) / 2 * outputs / 2
        rate = min(load * pool / occupied / clients * rng.choice((0.3, 1.0, 3.0)), 1.5)
        weight = rng.choice((1.0, 2.0, 4.0)) if weights else 1.0
        times: Times = poisson(rng, rate, steps)
        if rng.random() < 0.5:
            times = on_off(times, rng.choice((5, 20, 60)))
        for at in times:
            prompt, output = rng.randint(1, prompts), rng.randint(1, outputs)
            longest = max(longest, prompt)
            requests.append(Request(f"{index}", math.ceil(at), prompt, output, weight=weight))
    return Small(sorted(requests, key=lambda request: request.at), pool, longest, clients)


def unweighted(requests: Iterable[Request]) -> list[Request]:
    """The same with every weight at 1."""
    return [replace(request, weight=1.0) for request in requests]
