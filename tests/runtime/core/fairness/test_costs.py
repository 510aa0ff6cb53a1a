"""Cost functions: they never fall, and differences of steps add up [VTC 4.2]."""

from __future__ import annotations

import json
import random

import pytest

from lorafleet_runtime.core.fairness.cost import MICRO, Linear, Piecewise, Quadratic, kv_time, micro
from lorafleet_runtime.core.fairness.policies import CostSpec, read_cost, read_spec
from tests.runtime.core.fairness.kit import for_seeds


def random_cost(rng: random.Random) -> CostSpec:
    def table() -> list[dict[str, float]]:
        tokens = sorted(rng.sample(range(1, 50), rng.randint(1, 5)))
        costs = sorted(rng.randint(1, 10**6) / 1000 for _ in tokens)
        return [{"tokens": n, "cost": cost} for n, cost in zip(tokens, costs, strict=True)]

    kind = rng.choice(("Linear", "Quadratic", "KVTime", "Piecewise"))
    spec = {"kind": kind, **{name: rng.randint(1, 5000) / 1000 for name in ("input", "output", "memory")}}
    if kind == "Quadratic":
        spec |= {name: rng.randint(0, 100) / 1000 for name in ("product", "outputSquared", "constant")}
    if kind == "Piecewise":
        spec |= {"inputTable": table(), "outputTable": table()}
    return read_spec(json.dumps({"cost": spec})).cost


@for_seeds()
def test_more_tokens_never_cost_less_and_steps_add_up(seed: int) -> None:
    rng = random.Random(seed)
    cost = read_cost(random_cost(rng))
    prompt, output = rng.randint(1, 80), rng.randint(0, 80)
    steps = [cost.of(prompt, n) for n in range(output + 1)]
    assert steps == sorted(steps)
    assert [cost.of(n, output) for n in range(prompt)] == sorted(cost.of(n, output) for n in range(prompt))
    assert all(isinstance(step, int) and step >= 0 for step in steps)
    assert cost.of(prompt, output, cached=0) == cost.of(prompt, output)


@for_seeds()
def test_memory_over_time_is_what_is_held_in_each_step(seed: int) -> None:
    rng = random.Random(seed)
    prompt, output, memory = rng.randint(1, 500), rng.randint(0, 500), 2 * rng.randint(1, 5000)
    held = sum(prompt + step for step in range(1, output + 1))

    assert kv_time(MICRO, 2 * MICRO, memory).of(prompt, output) == Linear().of(prompt, output) + memory * held


def test_the_papers_profile_has_its_values() -> None:
    """h(x, y) of Llama-2-7B on an A10G, from the artifact's data: 2.1x + y + 0.04xy + 0.032y² + 11.46, over 10."""
    profile = Quadratic(micro(0.21001891), micro(0.10075395), micro(0.0039868), micro(0.00324733), micro(1.14601454))

    exact = 0.21001891 * 256 + 0.10075395 * 128 + 0.0039868 * 256 * 128 + 0.00324733 * 128**2 + 1.14601454
    assert profile.of(256, 128) / MICRO == pytest.approx(exact, rel=1e-3)
    assert profile.of(0, 0) == micro(1.14601454), "a request costs something by itself, once"


def test_a_table_is_linear_between_its_points_and_goes_on_beyond_them() -> None:
    cost = Piecewise(((10, 100), (20, 400)), ((1, 0),))

    assert [cost.of(n, 0) for n in (0, 5, 10, 15, 20, 30)] == [0, 50, 100, 250, 400, 700]


@pytest.mark.parametrize(
    ("cost", "problem"),
    [
        ({"kind": "Cubic"}, "none of"),
        ({"input": -1}, "negative"),
        ({"input": 0, "output": 0}, "nothing would be counted"),
        ({"kind": "Piecewise"}, "inputTable"),
        ({"kind": "Piecewise", "inputTable": [{"tokens": 1, "cost": 2}, {"tokens": 2, "cost": 1}]}, "does not fall"),
    ],
)
def test_a_cost_that_cannot_be_counted_with_is_refused(cost: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read_spec(json.dumps({"cost": cost}))
