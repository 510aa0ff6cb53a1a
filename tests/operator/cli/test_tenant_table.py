"""`top tenants` on a terminal of 80 columns."""

from __future__ import annotations

import pytest
from rich.console import Console

from lorafleet_operator.cli.live_table import Exposition
from lorafleet_operator.cli.tenant_table import COLUMNS, TenantTable, short
from tests.operator.cli.fairness_text import exposition

WHOLE = {"floor": 41_000.0, "spread": 12.5, "bound": 9_000.0, "jain": 0.98}
LARGE = {"service": 1.2e12, "counter": 6.1e11, "running": 256, "waiting": 99_999, "rejected": 1.5e6, "weight": 1000}


def shown(view: TenantTable, text: str, now: float, width: int = 80) -> list[str]:
    out = Console(width=width, force_terminal=False)
    with out.capture() as captured:
        out.print(view([Exposition("models", "smollm2", "smollm2-0", text)], now))
    return captured.get().splitlines()


def test_a_head_and_a_table_for_each_base_model() -> None:
    head, columns, line = shown(TenantTable(), exposition(WHOLE, acme={"service": 50_000, "counter": 43_000}), 1.0)

    assert head.strip() == "models/smollm2  floor 41.0k  spread 12.5  bound 9000  Jain 0.98"
    assert columns.split() == ["TENANT", *COLUMNS]
    assert line.split() == ["acme", "1", "50.0k", "100%", "43.0k", "2000", "0", "0", "-", "0"]


def test_tokens_per_second_are_of_the_time_between_two_looks() -> None:
    view = TenantTable()
    shown(view, exposition(acme={"prompt": 100, "output": 50}), 10.0)

    assert shown(view, exposition(acme={"prompt": 110, "output": 80}), 14.0)[-1].split()[-2] == "10"
    assert shown(view, exposition(acme={"prompt": 1, "output": 1}), 15.0)[-1].split()[-2] == "2"


def test_everything_fits_into_80_columns_and_long_names_are_cut() -> None:
    tenants = {f"a-tenant-with-a-long-name-{i}": {**LARGE, "counter": i * 1e9} for i in range(3)}
    lines = shown(TenantTable(), exposition(WHOLE, **tenants), 1.0)

    assert all(len(line) <= 80 for line in lines)
    assert [line.split()[0] for line in lines[2:]] == ["a-tenant-…"] * 3
    assert lines[2].split()[1:5] == ["1000", "1.20T", "33%", "0"]


def test_replicas_that_do_not_answer_are_counted_in_the_head() -> None:
    out = Console(width=80, force_terminal=False)
    silent = [Exposition("models", "smollm2", f"smollm2-{i}", "") for i in range(2)]
    with out.capture() as captured:
        out.print(TenantTable()(silent, 1.0))
        out.print(TenantTable()([], 1.0))

    assert "models/smollm2  0 of 2 replicas answer\n" in captured.get().replace("  \n", "\n")
    assert "no replica is there to ask" in captured.get()


@pytest.mark.parametrize(("value", "text"), [
    (0, "0"), (3, "3"), (12.34, "12.3"), (99.96, "100"), (9999.4, "9999"), (9999.5, "10.0k"), (123_456, "123k"),
    (999_499, "999k"), (999_500, "1.00M"), (-1_234_567, "-1.23M"), (4.2e12, "4.20T"), (float("nan"), "nan"),
])  # fmt: skip
def test_numbers_have_six_characters_at_most(value: float, text: str) -> None:
    assert short(value) == text
    assert len(text) <= 6
