"""Before anything is timed: the kernels' results on this device against float64. In Triton's interpreter where there is
no GPU, on grids of a few programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.kernels_cases import DeltaCase, shapes
from bench.kernels_layers import Context, RandomDecoder, context, counted_launches, expands_apart
from bench.kernels_pools import StoredAdapters, stored
from lorafleet_kernels import reference
from lorafleet_kernels.gpu.card import Card
from lorafleet_kernels.gpu.forms.lora import Variant
from lorafleet_kernels.gpu.specialization import INTERPRETED
from lorafleet_kernels.reference_fp8 import FP8, restore
from lorafleet_runtime.model.config import GROUPS, LORA_TARGETS, DecoderConfig

ROUNDED_ONCE = 2.0 ** (-7 if INTERPRETED else -8)
"""Of a bfloat16 result: half a unit in its last place; the interpreter cuts instead of rounding, up to a whole one."""
NOISE = 1e-5
"""Of the largest number of a result: what float32 sums lose before that."""
ROUNDED_OFTEN = 3e-2
"""Of a row's largest number, where queries, keys and weights of attention are rounded on the way."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`error`: of what is allowed, so at most 1 is right; `control`: the same of a result that is wrong on purpose."""

    name: str
    error: float
    control: float

    @property
    def passed(self) -> bool:
        return self.error <= 1 < self.control

    def __str__(self) -> str:
        verdict = "passes" if self.passed else "FAILS"
        return f"{verdict}: {self.name}: {self.error:.2g} of what is allowed; wrong on purpose: {self.control:.2g}"


def delta_findings(config: DecoderConfig, device: torch.device, cases: Sequence[DeltaCase]) -> list[Finding]:
    """Both variants of shrink + expand. The control: another adapter's delta."""
    found = []
    for case in cases:
        group = shapes(config)[case.group]
        adapters = stored(config, case.ranks_of_adapters, GROUPS[case.group], device, fp8=case.fp8)
        x = torch.randn(case.rows, group.k, device=device).to(torch.bfloat16)
        y = torch.randn(case.rows, sum(group.widths), device=device).to(torch.bfloat16)
        layer = config.num_layers - 1
        expected, wrong = y.double(), y.double()
        add_deltas(expected, x.double(), adapters, layer, case.group, case.rows)
        add_deltas(wrong, x.double(), adapters, layer - 1, case.group, case.rows)
        for variant in Variant:
            step = adapters.step(case.segments, case.rows, Card.of(device), variant)
            got = y.clone()
            step(layer, case.group, x, got)
            found.append(Finding(f"{case}, {variant}", _once(got, expected), _once(wrong, expected)))
    return found


def add_deltas(y: Tensor, x: Tensor, adapters: StoredAdapters, layer: int, group: str, rows: int) -> None:
    """`y [T, O]` float64 += the deltas of equal segments, by the specification."""
    each = rows // len(adapters.ranks)
    for adapter in range(len(adapters.ranks)):
        view = adapters.views(adapter, layer, group)
        parts = [reference.LoraPart(p.begin, p.end, p.b.double()) for p in view.parts]
        at = slice(adapter * each, (adapter + 1) * each)
        reference.lora_segment(y[at], x[at], view.a.double(), parts)


def attention_findings(
    config: DecoderConfig, device: torch.device, decodes: Sequence[int], chunks: Sequence[tuple[int, int]],
    fp8: bool = False,
) -> list[Finding]:  # fmt: skip
    """Rotation, KV write, decode and prefill together. The control: scores a fifth too large."""
    case = context(config, decodes, chunks, device, fp8=fp8)
    width = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    qkv = torch.randn(len(case.batch.positions), width, device=device).to(torch.bfloat16)
    wide = qkv.double()
    got = case.attention(0, qkv, None, None)
    expected, wrong = attended(case, wide, 0), attended(case, wide, 0, 1.2)
    name = f"attention{' fp8' if fp8 else ''}: {len(decodes)} decode rows up to {max(decodes)}, chunks {list(chunks)}"
    return [Finding(name, _often(got, expected), _often(wrong, expected))]


def attended(case: Context, qkv: Tensor, layer: int, scale: float = 1.0) -> Tensor:
    """`[T, heads · D]` in float64, of cached keys as the pool has them and the step's own; of 8 bits all as the pool
    has them, after the step."""
    sizes = case.sizes
    at = torch.tensor(case.batch.positions, device=qkv.device)
    cos, sin = (table.double()[at] for table in case.tables)
    q, k, v = reference.rotated_heads(qkv, sizes, cos, sin, None, None)
    out, row = torch.empty_like(q), 0
    for count, pages in zip(case.batch.counts, case.batch.pages, strict=True):
        cached = case.batch.positions[row]
        own = slice(row, row + count)
        held = _pages(case, layer, pages).transpose(0, 1).flatten(1, 2)
        fresh = (k[own], v[own]) if case.scales is None else held[:, cached : cached + count]
        keys = torch.cat((held[0, :cached], fresh[0])).repeat_interleave(sizes.heads // sizes.kv_heads, dim=1)
        values = torch.cat((held[1, :cached], fresh[1])).repeat_interleave(sizes.heads // sizes.kv_heads, dim=1)
        scores = torch.einsum("thd,chd->htc", q[own], keys) * scale / sizes.size**0.5
        later = torch.arange(cached + count, device=qkv.device) > at[own, None]
        out[own] = torch.einsum("htc,chd->thd", scores.masked_fill(later, float("-inf")).softmax(-1), values)
        row += count
    return out.flatten(1)


def _pages(case: Context, layer: int, pages: Sequence[int]) -> Tensor:
    """`[N, 2, 16, kv_heads, D]` in float64."""
    at = torch.tensor(pages, device=case.pool.device)
    if case.scales is None:
        return case.pool[layer, at].double()
    return restore(case.pool[layer].view(torch.uint8)[at].view(FP8), case.scales[layer, at], torch.float64)


@dataclass(frozen=True, slots=True)
class Launches:
    """Triton kernels that one layer starts, the last layer aside, whose last expand has nothing to be part of."""

    base: int
    separate: int
    fused: int


def layer_findings(
    config: DecoderConfig, device: torch.device, rows: int, length: int
) -> tuple[list[Finding], Launches]:
    """All layers with adapters, fused and with expands apart; and what they start. The control: without adapters."""
    decoder = RandomDecoder.of(config, device)
    adapters = stored(config, (16, 8), LORA_TARGETS, device)
    segments = [(0, rows // 2, 0), (rows // 2, rows, 1)]
    x = torch.randn(rows, config.hidden_size, device=device).to(torch.bfloat16)
    case = context(config, [length] * rows, (), device)
    before = case.pool.clone()
    expected = _decoded(decoder, x, case, adapters)
    step = adapters.step(segments, rows, Card.of(device))

    def run(lora: bool) -> tuple[Tensor, int]:
        case.pool.copy_(before)
        with counted_launches() as started:
            got = decoder(x.clone(), case.attention, step if lora else None)
        return got, len(started)

    base, base_count = run(False)
    fused, fused_count = run(True)
    with expands_apart():
        apart, apart_count = run(True)
    control = _often(base.double(), expected) / config.num_layers
    found = [
        Finding(f"{config.num_layers} layers, {name}", _often(got, expected) / config.num_layers, control)
        for name, got in (("expands in the kernels that follow", fused), ("expands apart", apart))
    ]
    # Of n layers the first has one norm more, which is the last's one less; the last expand is always apart.
    per = [-(-count // config.num_layers) for count in (base_count, apart_count, fused_count - 1)]
    return found, Launches(*per)


def _decoded(decoder: RandomDecoder, x: Tensor, case: Context, adapters: StoredAdapters) -> Tensor:
    """The layers in float64; weights are cast one layer at a time."""
    eps, rows = decoder.config.rms_norm_eps, len(x)
    x = x.double()
    for index, layer in enumerate(decoder.layers):

        def product(group: str, h: Tensor, layer_index: int = index) -> Tensor:
            y = h @ decoder.layers[layer_index].weights[group].double().t()
            add_deltas(y, h, adapters, layer_index, group, rows)
            return y

        h = reference.rms_norm(x, layer.input_norm.double(), eps)
        x = x + product("o", attended(case, product("qkv", h), index))
        h = reference.rms_norm(x, layer.post_norm.double(), eps)
        x = x + product("down", reference.silu_and_mul(product("gate_up", h)))
    return x


def _once(got: Tensor, expected: Tensor) -> float:
    """The largest error, in parts of what one rounding may do."""
    return _worst(got, expected, ROUNDED_ONCE * expected.abs() + NOISE * expected.abs().max())


def _often(got: Tensor, expected: Tensor) -> float:
    return _worst(got, expected, ROUNDED_OFTEN * expected.abs().amax(dim=1, keepdim=True))


def _worst(got: Tensor, expected: Tensor, allowed: Tensor) -> float:
    worst = float(((got.double() - expected).abs() / allowed).max())
    return worst if worst == worst else float("inf")  # NaN: something was read that nobody wrote


def run_gate(checks: Sequence[Callable[[], Sequence[Finding]]]) -> bool:
    """Runs and prints them. Whether all pass."""
    passed = True
    for check in checks:
        for finding in check():
            print(finding, flush=True)
            passed &= finding.passed
    return passed
