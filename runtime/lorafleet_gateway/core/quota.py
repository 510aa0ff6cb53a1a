"""What a tenant may still ask for at this gateway: two token buckets and a count of what runs.

Pure: `now` is monotonic seconds, passed in. A bucket holds one minute's worth and is filled evenly; a request takes
from it when it is admitted, and what it turns out to have used is settled at its end, so that a bucket may go below
zero and is then paid back by waiting. What other gateways admitted is taken out when it is heard of
(`core.shared_use` says how large the error of that is)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from lorafleet_gateway.core.fleet_model import Quota

CONCURRENT, REQUESTS, TOKENS = "maxConcurrentRequests", "requestsPerMinute", "tokensPerMinute"
FIRST_AVERAGE = 256.0  # output tokens of a choice, before any has been seen
_Amount = Annotated[int, Meta(ge=0, le=2**62)]
_FORGET = 1 / 16  # how much the newest answer counts in the moving average
_ROUNDING = 1e-6  # sums of floats must not make a client wait one second more than it was told


@dataclass(frozen=True, slots=True)
class Refusal:
    """The limit that refuses for longest: its name, its value, how much of it is used, what was asked of it, and the
    whole seconds (>= 1) after which it would admit the same request."""

    limit: str
    value: int
    used: int
    asked: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Reservation:
    """What an admitted request took: `tokens` is the estimate, the other two what came out of the buckets, which is
    nothing where there was no limit."""

    tokens: int
    from_requests: int
    from_tokens: int


class Use(msgspec.Struct, frozen=True):
    """What one gateway has done for one tenant since it started: all of it only grows. `requests` and `tokens` are what
    its limits a minute have counted; `started` ones of which `finished` are over are what runs."""

    requests: _Amount = 0
    tokens: _Amount = 0
    started: _Amount = 0
    finished: _Amount = 0
    rejected: _Amount = 0

    @property
    def running(self) -> int:
        return max(0, self.started - self.finished)

    def joined(self, other: Use) -> Use:
        """What both know."""
        return Use(*map(max, msgspec.structs.astuple(self), msgspec.structs.astuple(other)))


class Bucket:
    """At most `limit`, filled by `limit` a minute. `level` is what it held at the last call of `fill`."""

    __slots__ = ("_at", "level", "limit")

    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit
        self.level = float(limit)
        self._at = now

    def fill(self, now: float) -> None:
        """Let time pass. A clock that jumps back fills nothing, one that jumps ahead at most to the brim."""
        if now > self._at:
            self.put((now - self._at) * self.limit / 60)
        self._at = now

    def put(self, amount: float) -> None:
        """Give back, or with a negative amount take without asking."""
        self.level = min(float(self.limit), self.level + amount)

    def take_elsewhere(self, amount: int) -> None:
        """Others took it. That alone never makes the debt more than one minute: after a partition a tenant waits
        that long, however long it lasted."""
        self.level = max(self.level - amount, min(self.level, -float(self.limit)))

    def resize(self, limit: int) -> None:
        """Another limit from now on. What a larger one adds is there at once, so what was used stays used."""
        self.level += max(0, limit - self.limit)
        self.limit = limit
        self.put(0)

    def seconds_until(self, amount: float) -> int:
        """0 when `amount` is there, else the whole seconds until it is. `amount` must not be above the limit."""
        missing = amount - self.level - _ROUNDING
        return math.ceil(missing * 60 / self.limit) if missing > 0 else 0


class Account:
    """One tenant at this gateway. A request calls `enter` before its body is read, `reserve` when it is known what it
    asks for, then `settle` or `give_back`, and `leave` at last.

    Nothing is taken when any limit refuses. Use is counted with and without limits, so that a limit that comes while
    requests run finds them counted."""

    def __init__(self, quota: Quota, now: float) -> None:
        self.average_output = FIRST_AVERAGE
        self._started = self._finished = self._requests = self._tokens = self._rejected = 0
        self._told_requests = self._told_tokens = 0
        self._quota = Quota()
        self._requests_bucket: Bucket | None = None
        self._tokens_bucket: Bucket | None = None
        self.follow(quota, now)

    @property
    def running(self) -> int:
        """Requests that have entered and are not over."""
        return self._started - self._finished

    @property
    def counts_tokens(self) -> bool:
        """Whether an estimate is of any use."""
        return self._tokens_bucket is not None

    def follow(self, quota: Quota, now: float) -> None:
        """The limits from now on; what runs goes on, and what it took stays taken."""
        self._quota = quota
        self._requests_bucket = _followed(self._requests_bucket, quota.requests_per_minute, now)
        self._tokens_bucket = _followed(self._tokens_bucket, quota.tokens_per_minute, now)

    def enter(self, running_elsewhere: int, now: float) -> Refusal | None:
        """Count one more running request, or say why not: too many run already, or `reserve` would refuse anyway."""
        running, most = self.running + running_elsewhere, self._quota.max_concurrent_requests
        full = Refusal(CONCURRENT, most, running, 1, 1) if most is not None and running >= most else None
        refusal = self._longest(full, _lacking(self._requests_bucket, REQUESTS, 1, now))
        if refusal is None:
            self._started += 1
        return refusal

    def leave(self) -> None:
        """A request that had entered is over."""
        self._finished += 1

    def reserve(self, tokens: int, now: float) -> Reservation | Refusal:
        """Take one request and an estimate of its tokens, which counts as no more than the whole limit: no request is
        too large for ever."""
        if self._tokens_bucket is not None:
            tokens = min(tokens, self._tokens_bucket.limit)
        lacking = self._longest(
            _lacking(self._requests_bucket, REQUESTS, 1, now), _lacking(self._tokens_bucket, TOKENS, tokens, now)
        )
        if lacking is not None:
            return lacking
        self._requests += 1
        self._tokens += tokens
        return Reservation(tokens, _take(self._requests_bucket, 1), _take(self._tokens_bucket, tokens))

    def settle(self, reserved: Reservation, tokens: int, now: float) -> None:
        """The request has used `tokens`, whatever was reserved."""
        self._tokens += tokens - reserved.tokens
        _put(self._tokens_bucket, reserved.from_tokens - tokens, now)

    def give_back(self, reserved: Reservation, now: float) -> None:
        """The request never reached a replica, or was refused there: it was as good as never admitted."""
        self._requests -= 1
        self._tokens -= reserved.tokens
        _put(self._requests_bucket, reserved.from_requests, now)
        _put(self._tokens_bucket, reserved.from_tokens, now)

    def learn(self, output_tokens: float) -> None:
        """A choice turned out that long."""
        self.average_output += (output_tokens - self.average_output) * _FORGET

    def took_elsewhere(self, requests: int, tokens: int, now: float) -> None:
        """Other gateways admitted that much more."""
        for bucket, amount in ((self._requests_bucket, requests), (self._tokens_bucket, tokens)):
            if bucket is not None:
                bucket.fill(now)
                bucket.take_elsewhere(amount)

    def told(self) -> Use:
        """The use to tell other gateways. What is given back or turns out smaller than reserved lowers nothing that
        was told: the next use is told only beyond it."""
        self._told_requests = max(self._told_requests, self._requests)
        self._told_tokens = max(self._told_tokens, self._tokens)
        return Use(self._told_requests, self._told_tokens, self._started, self._finished, self._rejected)

    def _longest(self, *refusals: Refusal | None) -> Refusal | None:
        found = [refusal for refusal in refusals if refusal is not None]
        self._rejected += bool(found)
        return max(found, key=lambda refusal: refusal.seconds, default=None)


def _followed(bucket: Bucket | None, limit: int | None, now: float) -> Bucket | None:
    if limit is None:
        return None
    if bucket is None:
        return Bucket(limit, now)
    if bucket.limit != limit:
        bucket.fill(now)
        bucket.resize(limit)
    return bucket


def _lacking(bucket: Bucket | None, name: str, amount: int, now: float) -> Refusal | None:
    if bucket is None:
        return None
    bucket.fill(now)
    seconds = bucket.seconds_until(amount)
    used = math.ceil(bucket.limit - bucket.level - _ROUNDING)
    return Refusal(name, bucket.limit, used, amount, seconds) if seconds else None


def _take(bucket: Bucket | None, amount: int) -> int:
    if bucket is None:
        return 0
    bucket.put(-amount)
    return amount


def _put(bucket: Bucket | None, amount: int, now: float) -> None:
    if bucket is not None:
        bucket.fill(now)
        bucket.put(amount)
