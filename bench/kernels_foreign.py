"""The kernels of vLLM and SGLang as rivals, one small class each. Each is told what its own engine would tell it, once
per step and outside of what is timed: which rows belong to which adapter. Tiles are those that each chooses itself.

SGLang's triton_v2 hides its shrink under the base model's product where it can; here there is none, and it is timed
with its expand, as all are."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bench.kernels_cases import PREFILL_TOKENS
from bench.kernels_rivals import Call, DeltaWork, Rival, Unavailable
from bench.kernels_wheels import sglang, vllm

DENSE, LEAST_CHUNK = "sglang.kernels.ops.lora.dense", 16


class Vllm:
    """`lora_shrink` and `lora_expand`: fp32 between them, set to zero each time and added to by atomics."""

    name = "vLLM"

    def __init__(self, folder: Path | None) -> None:
        self._source = vllm(folder)

    def prepare(self, work: DeltaWork) -> Call:
        found = self._source.load()
        shrink, expand = found["lora_shrink_op"].lora_shrink, found["lora_expand_op"].lora_expand
        # It remembers shapes by where weights lie, and keeps the weights: other cases' would be at the same places.
        for cache in ("_LORA_A_PTR_DICT", "_LORA_B_PTR_DICT"):
            getattr(found["utils"], cache).clear()
        rows, count = work.case.rows, work.case.adapters
        told = found["lora_kernel_metadata"].LoRAKernelMeta.make(count, rows, work.x.device)
        told.prepare_tensors(work.adapter_of_row)
        arguments = told.meta_args(rows, True)
        a, b = work.slots()
        slices = len(work.group.widths)
        between = torch.empty(slices, rows, work.rank, dtype=torch.float32, device=work.x.device)

        def call(i: int) -> None:
            shrink(work.x[i], [a[i, s] for s in range(slices)], between, *arguments, 1.0)
            expand(between, [each[i] for each in b], work.y[i], *arguments, add_inputs=True)

        return call


class Csgmv:
    """SGLang's default. Segments are cut into chunks of at most `chunk` rows: 16 unless its server is told more."""

    def __init__(self, folder: Path | None, chunk: int) -> None:
        self.name = f"SGLang csgmv, chunks of {chunk}"
        self._chunk = chunk
        names = [f"{DENSE}.chunked_sgmv_shrink", f"{DENSE}.chunked_sgmv_expand", "sglang.srt.lora.utils"]
        self._source = sglang(folder, names)

    def prepare(self, work: DeltaWork) -> Call:
        found = self._source.load()
        if self._chunk > LEAST_CHUNK >= work.each:
            raise Unavailable(f"no segment is longer than {LEAST_CHUNK} rows: chunks of that are timed already")
        shrink = found["chunked_sgmv_shrink"].chunked_sgmv_lora_shrink_forward
        expand = found["chunked_sgmv_expand"].chunked_sgmv_lora_expand_forward
        a, b = packed(work)
        each, rows = work.each, work.case.rows
        begins = [at for first in range(0, rows, each) for at in range(first, first + each, self._chunk)]
        batch = found["utils"].LoRABatchInfo(
            use_cuda_graph=False, bs=len(begins), num_segments=len(begins),
            seg_indptr=_ints([*begins, rows], work),
            weight_indices=_ints([at // each for at in begins], work),
            lora_ranks=_ints(work.case.ranks_of_adapters, work),
            scalings=torch.ones(work.case.adapters, device=work.x.device), max_len=self._chunk, seg_lens=None,
            permutation=torch.arange(rows, dtype=torch.int32, device=work.x.device),
        )  # fmt: skip
        ends = [0, *(columns.stop for columns in work.columns)]
        offsets, on_host = _ints(ends, work), torch.tensor(ends, dtype=torch.int32)
        slices, widest = len(work.group.widths), max(work.group.widths)

        def call(i: int) -> None:
            h = shrink(work.x[i], a[i], batch, slices)
            expand(h, b[i], batch, offsets, widest, work.y[i], on_host)

        return call


class TritonV2:
    """SGLang's newest: its own choice of kernels and tiles by card, rows and rank."""

    name = "SGLang triton_v2"

    def __init__(self, folder: Path | None) -> None:
        names = ["sglang.srt.lora.dense.runner", "sglang.srt.lora.dense.plan", "sglang.srt.lora.utils",
                 "sglang.srt.lora.workspace"]  # fmt: skip
        self._source = sglang(folder, names)

    def prepare(self, work: DeltaWork) -> Call:
        found = self._source.load()
        a, b = packed(work)
        count, rows, device = work.case.adapters, work.case.rows, work.x.device
        runner = found["runner"].DenseLoraRunner(found["workspace"].LoraWorkspace(), max_loras=count, device=device)
        phase = found["utils"].Phase.PREFILL if rows >= PREFILL_TOKENS else found["utils"].Phase.DECODE
        runner.begin_batch(
            token_slots=work.adapter_of_row, lora_ranks=_ints(work.case.ranks_of_adapters, work),
            scalings=torch.ones(count, device=device), num_tokens=rows, phase=phase, graph_mode=False,
        )  # fmt: skip
        ends = (0, *(columns.stop for columns in work.columns))
        linear = found["plan"].DenseLoraKind.LINEAR
        plan = runner.plan_for(linear, work.rank, work.group.k, ends[-1], num_tokens=rows)

        def call(i: int) -> None:
            bridge = runner.run_a(work.x[i], a[i], stack=len(ends) - 1, plan=plan)
            runner.run_b(bridge, b[i], work.y[i], offsets=ends, plan=plan)

        return call


def packed(work: DeltaWork) -> tuple[Tensor, Tensor]:
    """As SGLang has them: `a [copies, N, S · R, K]`, of an adapter of rank r the rows of slice s from s · r on;
    `b [copies, N, Σ out, R]`."""
    a, b = work.slots()
    slices, rank = a.shape[1], work.rank
    rows = a.transpose(1, 2).flatten(2, 3).contiguous()
    for number, own in enumerate(work.case.ranks_of_adapters):
        if own < rank:
            rows[0, number].zero_()
            rows[0, number, : slices * own] = a[0, :, number, :own].flatten(0, 1)
    return rows, torch.cat(b, dim=2)


def foreign_rivals(folder: Path | None) -> list[Rival]:
    """Those that are known here; which of them are there shows when they are asked."""
    return [Vllm(folder), Csgmv(folder, LEAST_CHUNK), Csgmv(folder, 128), TritonV2(folder)]


def _ints(values: tuple[int, ...] | list[int], work: DeltaWork) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=work.x.device)
