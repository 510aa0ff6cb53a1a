"""The fastest of some forms is found without timing all of them often, and a wrong one is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorafleet_kernels.gpu.tuning.clock import REPEATS
from lorafleet_kernels.gpu.tuning.search import agrees, copies_past, expected_of, fastest, right, worth_it
from tests.kernels.gpu.tuning.virtual import RIGHT, Bench, endless

FORMS = [f"form {i}" for i in range(40)]
SECONDS = {form: float(len(FORMS) - i) for i, form in enumerate(FORMS)}


def test_rough_times_thin_the_field_before_fine_ones() -> None:
    bench = Bench(SECONDS.__getitem__)

    last = fastest(FORMS, FORMS[0], [bench], bench.clock, endless())

    fine = [form for form, repeats in bench.timed if repeats == REPEATS]
    assert len([1 for _, repeats in bench.timed if repeats == 1]) == len(FORMS)
    assert len(fine) <= 6
    assert next(iter(last)) == FORMS[-1]
    assert FORMS[0] in last  # the slowest, and the default


def test_every_work_counts_alike_whatever_it_takes() -> None:
    """A form that halves what takes a microsecond beats one that saves a tenth of a second."""
    short: dict[str, float] = {"default": 1e-6, "short": 0.5e-6, "long": 1e-6}
    long: dict[str, float] = {"default": 1.0, "short": 1.0, "long": 0.9}
    benches = [Bench(short.__getitem__), Bench(long.__getitem__)]
    owners = iter(benches * 100)

    last = fastest(list(short), "default", benches, lambda run, calls, repeats=7: next(owners).clock(run, 2), endless())

    assert list(last) == ["short", "long", "default"]
    assert last["short"] == (0.5e-6, 1.0)


def test_a_form_must_be_right_in_every_work() -> None:
    said: list[str] = []
    benches = [Bench(SECONDS.__getitem__), Bench(SECONDS.__getitem__, lambda form: form == "form 7")]

    found = right(FORMS[5:9], [RIGHT, RIGHT], benches, endless(), said.append)

    assert found == ["form 5", "form 6", "form 8"]
    assert said == ["left out, its result is wrong: form 7"]


def test_a_default_that_is_no_number_is_refused() -> None:
    class Broken(Bench[str]):
        def result(self, form: str) -> Tensor:
            return RIGHT * torch.tensor([1, float("nan"), 1])

    with pytest.raises(ValueError, match="the default form's result is no number"):
        expected_of("default", [Broken(SECONDS.__getitem__)])


def test_what_gains_less_than_noise_is_not_worth_it() -> None:
    assert not worth_it([0.98, 0.98], [1.0, 1.0])
    assert worth_it([0.97, 0.97], [1.0, 1.0])
    assert worth_it([1.0, 0.5], [0.97, 1.0])


def test_copies_outgrow_the_cache_twice() -> None:
    assert copies_past(cache=50, moved=10) == 11
    assert copies_past(cache=50, moved=1000) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounding_agrees_and_another_value_does_not(dtype: torch.dtype) -> None:
    expected = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    unit, noise = torch.finfo(dtype).eps, 1e-4

    assert agrees((expected.double() * (1 + unit)).to(dtype), expected, noise)
    assert not agrees(expected * (1 + 16 * unit) + 1e-2, expected, noise)
    broken = expected.clone()
    broken[3, 5] = float("nan")
    assert not agrees(broken, expected, noise)
    assert not agrees(broken, broken, noise)
