"""Messages between front end and engine: msgspec structs over ZeroMQ, one union each way.

The engine knows token ids and adapter keys; it knows no text, names, HTTP or tenants' keys.
"""

from __future__ import annotations

import msgspec

from lorafleet_runtime.constraints.constraint import Constraint, Vocabulary
from lorafleet_runtime.core.fairness.counters import Table


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """How tokens are chosen. A seed gives the same tokens in any batch: draws are counted by (seed, position)."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0  # 64 bits; the front end draws one when the client gave none
    logit_bias: dict[int, float] = {}
    stop_token_ids: tuple[int, ...] = ()  # the model's own end tokens included, unless ignore_eos
    min_tokens: int = 0  # stop ids are not sampled before
    logprobs: int = -1  # -1: none; 0: the chosen token's; k: and the k best
    constraint: Constraint | None = None


class AddRequest(msgspec.Struct, frozen=True, tag=True):
    request_id: str
    prompt_token_ids: list[int]
    sampling: Sampling
    adapter: str | None = None  # adapter id; None is the base model
    output_token_ids: list[int] = []  # resume: already generated
    tenant: str = ""
    weight: float = 1.0
    user: str = ""  # the client's own word for whom it asks


class AbortRequest(msgspec.Struct, frozen=True, tag=True):
    request_id: str


class LoadAdapter(msgspec.Struct, frozen=True, tag=True):
    """Files are already on this machine and verified by digest; `folder` holds them."""

    adapter: str
    revision: str
    folder: str
    pinned: bool = False


class UnloadAdapter(msgspec.Struct, frozen=True, tag=True):
    adapter: str


class MergeCounters(msgspec.Struct, frozen=True, tag=True):
    """What other replicas have charged tenants, and how far they were lifted; from a gateway, checked."""

    table: Table


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    pass


ToEngine = Vocabulary | AddRequest | AbortRequest | LoadAdapter | UnloadAdapter | MergeCounters | Shutdown


class TokenLogprobs(msgspec.Struct, frozen=True):
    token_id: int
    logprob: float
    top: list[tuple[int, float]] = []  # best first


class Delta(msgspec.Struct, frozen=True):
    """What one step gave one request."""

    request_id: str
    token_ids: list[int]
    finish_reason: str | None = None  # "stop" | "length" | "abort" | "error"
    stop_token_id: int | None = None  # the stop id that ended it; it is also the last of token_ids
    logprobs: list[TokenLogprobs] = []  # one per token id, when asked for
    error: str = ""  # with finish_reason "error": "CODE: message"
    retry_after: int = 0  # seconds, for errors that pass
    cached_tokens: int = 0


class Deltas(msgspec.Struct, frozen=True, tag=True):
    items: list[Delta]


class AdapterState(msgspec.Struct, frozen=True, rename="camel"):
    id: str
    revision: str
    state: str  # Loading | Ready | Draining | Failed
    reason: str = ""  # InvalidAdapter | RankTooHigh | NoRoom | FetchFailed: lost on disk, another load may do
    message: str = ""
    rank: int = 0
    pages: int = 0
    bytes: int = 0
    targets: list[str] = []
    resident: bool = False
    level: str = ""  # where its weights are nearest: pool | host | disk
    evicted_for: str = ""  # what its pages were wanted for when it last lost them: prompt | decode | adapter
    pinned: bool = False
    running: int = 0
    waiting: int = 0


class ModelInfo(msgspec.Struct, frozen=True, rename="camel"):
    architecture: str
    dtype: str
    max_model_len: int
    max_rank: int
    parameters: int
    vocab_size: int


class PagesInfo(msgspec.Struct, frozen=True, rename="camel"):
    total: int
    free: int
    kv: int
    adapters: int
    prefixes: int  # held by the prefix cache alone
    evictable: int  # idle adapters and idle prefixes
    bytes: int


class HostInfo(msgspec.Struct, frozen=True, rename="camel"):
    """Host memory that holds adapters ready to be copied into pages, in bytes."""

    budget: int
    used: int


class LoadInfo(msgspec.Struct, frozen=True, rename="camel"):
    running: int
    waiting: int
    waiting_tokens: int
    step_seconds: float
    output_tokens_per_second: float


class Counters(msgspec.Struct, frozen=True, rename="camel"):
    """Totals since start, for /metrics."""

    steps: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    adapter_loads: int = 0  # into pages
    adapter_reads: int = 0  # from disk into host memory, after the first time
    adapter_evictions: dict[str, int] = {}  # by what the pages were wanted for: prompt | decode | adapter
    prefix_evictions: dict[str, int] = {}
    prefix_tokens_asked: int = 0  # prompt tokens of admitted requests
    prefix_tokens_hit: int = 0  # of these, what the prefix cache held
    early_aborts: int = 0
    constraints_compiled: int = 0
    constraint_seconds: float = 0.0  # of compiling them
    foreseen_tokens: int = 0  # that cost no step of their own, as a constraint left nothing else
    drafts: int = 0  # rows that had guesses at further tokens
    draft_tokens: int = 0  # the guesses
    accepted_tokens: int = 0  # of these, what was right and wanted


class TenantRow(msgspec.Struct, frozen=True, rename="camel"):
    """What one tenant has had of this replica. `service` in micro-units, before the weight."""

    name: str
    weight: float
    service: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    running: int = 0
    waiting: int = 0
    aborted: int = 0


class Sharing(msgspec.Struct, frozen=True, tag=True):
    """How tenants share this replica: `table` and `tenants` are what changed since the last one.

    In micro-units over the weight: `floor`, to which who comes now is lifted; `spread` of those that wait; `bound`, 2U;
    `rate` per second."""

    policy: str
    floor: int = 0
    spread: int = 0
    bound: int = 0
    rate: int = 0
    jain: float = 1.0
    backlogged: int = 0
    lifts: int = 0
    refunds: int = 0
    table: Table = msgspec.field(default_factory=Table)
    tenants: list[TenantRow] = []


class EngineState(msgspec.Struct, frozen=True, tag=True, rename="camel"):
    """Sent when something changed, at most every 100 ms, and on every change of phase or of an adapter's state.

    `adapters` does not travel: there may be ten thousand. Who receives AdapterNews puts them in."""

    phase: str  # Loading | Ready | Failed
    message: str = ""
    progress: float = 0.0  # 0..1 while Loading
    model: ModelInfo | None = None
    pages: PagesInfo | None = None
    host: HostInfo | None = None
    load: LoadInfo | None = None
    counters: Counters = Counters()
    adapters: list[AdapterState] = []


class AdapterNews(msgspec.Struct, frozen=True, tag=True):
    """What has changed among the adapters since the last one, sent before the state that it belongs to. Keys mean
    nothing but themselves."""

    told: dict[int, AdapterState]
    gone: list[int] = []


class Alive(msgspec.Struct, frozen=True, tag=True):
    """Sent once a second, from a thread that waits for no step: for how long the engine's loop has not come round."""

    busy_seconds: float


FromEngine = Deltas | Sharing | AdapterNews | EngineState | Alive

encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine = msgspec.msgpack.Decoder(FromEngine).decode
