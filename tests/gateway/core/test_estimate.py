from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from lorafleet_gateway.core.estimate import Estimate, estimate, prompts_in


def estimated(**fields: Any) -> Estimate:
    return estimate(msgspec.json.decode(json.dumps(fields), type=dict[str, Raw]), 256.0)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (0, 256, 1)),
        ({"prompt": "abcdef"}, (2, 256, 1)),
        ({"prompt": [1, 2, 3], "max_tokens": 5}, (3, 5, 1)),
        ({"prompt": [[1, 2, 3], [4]], "max_tokens": 5}, (4, 10, 2)),
        ({"prompt": ["abcd", "ab"], "max_tokens": 5, "n": 3}, (3, 30, 6)),
        ({"messages": [{"a": "b"}], "max_completion_tokens": 7, "max_tokens": 9}, (3, 7, 1)),
        ({"n": 2}, (0, 512, 2)),
        ({"n": 2, "best_of": 4, "max_tokens": 1}, (0, 4, 4)),
        ({"max_tokens": -3}, (0, 0, 1)),
        ({"max_tokens": "many", "n": None, "prompt": 7}, (0, 256, 1)),
        ({"prompt": [1, "x"], "max_tokens": 0}, (2, 0, 1)),
        ({"prompt": []}, (0, 256, 1)),
    ],
)
def test_prompt_output_and_choices_are_estimated(fields: dict[str, Any], expected: tuple[int, int, int]) -> None:
    assert estimated(**fields) == Estimate(*expected)


def test_at_least_one_token_is_reserved() -> None:
    assert estimated(max_tokens=0).total == 1


def test_a_hostile_prompt_is_only_counted() -> None:
    assert prompts_in(Raw(b"[" * 100_000 + b"]" * 100_000))[0] == 1
