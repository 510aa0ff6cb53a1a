"""Tokens that the host did not know are those that were sampled."""

from __future__ import annotations

import pytest
import torch

from lorafleet_kernels.gpu.tokens import known_tokens, stand_in


@pytest.mark.parametrize("count", [0, 1, 5, 1024, 1500])
def test_what_stands_for_a_sample_becomes_it_and_all_else_stays(count: int, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(count)
    sampled = torch.randint(0, 50_000, (64,), generator=generator, dtype=torch.int32)
    tokens = torch.randint(0, 50_000, (count,), generator=generator, dtype=torch.int32)
    sources = torch.randint(0, 64, (count,), generator=generator)
    standing = torch.rand(count, generator=generator) < 0.5
    given = torch.where(standing, stand_in(0) - sources, tokens).to(torch.int32)

    got = known_tokens(given.to(device), sampled.to(device))

    assert got.dtype == torch.int64
    assert torch.equal(got.cpu(), torch.where(standing, sampled[sources], tokens).long())
    assert count < 2 or 0 < int(standing.sum()) < count


def test_what_could_not_be_sampled_is_a_token_that_exists(device: torch.device) -> None:
    tokens = torch.tensor([stand_in(1), stand_in(0), 7], dtype=torch.int32, device=device)
    sampled = torch.tensor([-1, 9], dtype=torch.int32, device=device)

    assert known_tokens(tokens, sampled).tolist() == [9, 0, 7]
