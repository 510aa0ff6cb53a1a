"""The best token of every row, as the reference finds it."""

from __future__ import annotations

import pytest
import torch

from lorafleet_kernels import reference
from lorafleet_kernels.gpu.argmax import TritonArgmax

pytestmark = pytest.mark.interpreted

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(3, 1), (4, 4096), (2, 4097), (1, 20_000)])
def test_every_row_gets_its_best_token(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> None:
    logits = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).to(dtype).to(device)
    logits[0, columns - 1] = 9.0
    best = TritonArgmax(4, device, processors=2)

    assert torch.equal(best(logits), logits.float().argmax(-1))
    assert not best._arrived.any()


@pytest.mark.parametrize("processors", [1, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_logits_give_the_lowest_id_and_what_is_not_finite_gives_none(
    dtype: torch.dtype, processors: int, device: torch.device
) -> None:
    logits = torch.zeros(6, 9000, dtype=dtype, device=device)
    logits[0, [4097 + 4096, 4097, 4100]] = 1.0
    logits[1, 8500] = torch.nan
    logits[2, 3] = torch.inf
    logits[3] = -torch.inf
    logits[4] = -torch.inf
    logits[4, 7000] = -5.0

    tokens = TritonArgmax(6, device, processors)(logits)

    assert tokens.tolist() == [4097, -1, -1, -1, 7000, 0]
    assert torch.equal(tokens, reference.argmax(logits))


def test_rows_may_lie_apart_and_be_none(device: torch.device) -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(1)).to(device)
    best = TritonArgmax(4, device, processors=1)

    assert torch.equal(best(logits[::2, :33]), logits[::2, :33].argmax(-1))
    assert best(logits[:0]).shape == (0,)


def test_what_it_cannot_do_is_refused(device: torch.device) -> None:
    best = TritonArgmax(2, device, processors=1)

    with pytest.raises(ValueError, match="3 rows"):
        best(torch.zeros(3, 5, device=device))
    with pytest.raises(ValueError, match="lie apart"):
        best(torch.zeros(5, 2, device=device).t())
