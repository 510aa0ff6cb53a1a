"""Kernels that take in an expand: what the separate operations compute, and for the base model's rows the same bits."""

from __future__ import annotations

import pytest
import torch

from lorafleet_kernels import reference_lora
from lorafleet_kernels.gpu import elementwise
from lorafleet_kernels.gpu.forms.lora import Variant
from tests.kernels.gpu.lora_kit import LAYER, NOISE, ODD, TOLERANCE, TYPES, USUAL, Case, Ranks, make

pytestmark = pytest.mark.interpreted

ADAPTERS: tuple[Ranks, ...] = (
    {"gate_proj": 1, "up_proj": 18, "o_proj": 3, "down_proj": 33},
    {},
    {"up_proj": 2, "down_proj": 1},
)
SEGMENTS = ((0, 1, 0), (1, 2, -1), (2, 4, 2), (4, 5, 1), (5, 6, 0))
EPS = 1e-5


def near(got: torch.Tensor, expected: torch.Tensor, rounded: torch.Tensor, steps: int) -> None:
    """Within `steps` roundings of numbers as large as `rounded`: those that make up a sum may be larger than it."""
    error = (got.double().cpu() - expected).abs()
    worst = (error / (steps * TOLERANCE[got.dtype] * rounded.abs() + NOISE * expected.abs().max())).max().item()
    assert worst <= 1, f"{worst:.3g} times what {got.dtype} may be off"


def silu_case(dtype: torch.dtype, device: torch.device, odd: bool) -> tuple[Case, torch.Tensor, torch.Tensor]:
    config = ODD if odd else USUAL
    variant = Variant.TILES if odd else Variant.ROWS  # of the shrink before it
    case = make(ADAPTERS, SEGMENTS, dtype, device, rows=6, config=config, variant=variant)
    return case, case.inputs(6, config.hidden_size), case.inputs(6, 2 * config.intermediate_size)


@pytest.mark.parametrize("odd", [False, True], ids=["usual", "odd"])
@pytest.mark.parametrize("dtype", TYPES)
def test_silu_takes_in_the_expand_of_gate_and_up(dtype: torch.dtype, odd: bool, device: torch.device) -> None:
    case, x, gate_up = silu_case(dtype, device, odd)
    before, base = gate_up.clone(), case.base_rows(6)
    expected = reference_lora.lora_silu_and_mul(gate_up.double().cpu(), x.double().cpu(), case.adapted("gate_up"))

    case.step.shrink(LAYER, "gate_up", x)
    out = case.step.expand_silu_and_mul(LAYER, gate_up)

    # silu's slope is at most 1.1, and the gate may be large where silu of it is not.
    gate, up = case.expected("gate_up", x, gate_up).chunk(2, dim=1)
    near(out, expected, expected.abs() + 1.1 * (gate * up).abs(), 2)
    assert torch.equal(gate_up, before)
    assert torch.equal(out[base], elementwise.silu_and_mul(gate_up)[base])
    if not odd:  # tiles add up in another order
        case.step.expand(LAYER, "gate_up", gate_up)
        assert torch.equal(out, elementwise.silu_and_mul(gate_up))


@pytest.mark.parametrize("odd", [False, True], ids=["usual", "odd"])
@pytest.mark.parametrize("group", ["o", "down"])
@pytest.mark.parametrize("dtype", TYPES)
def test_the_norm_takes_in_an_addition_and_an_expand(
    dtype: torch.dtype, group: str, odd: bool, device: torch.device
) -> None:
    config = ODD if odd else USUAL
    case = make(ADAPTERS, SEGMENTS, dtype, device, rows=6, config=config, variant=Variant.ROWS)
    x = case.inputs(6, config.q_dim if group == "o" else config.intermediate_size)
    y, residual, weight = (case.inputs(6, config.hidden_size) for _ in range(3))
    separate, base = residual.clone(), case.base_rows(6)
    total = residual.double().cpu()
    parts = total.abs() + case.expected(group, x, y).abs()
    expected = reference_lora.lora_add_rms_norm(
        total, y.double().cpu(), x.double().cpu(), case.adapted(group), weight[0].double().cpu(), EPS
    )

    case.step.shrink(LAYER, group, x)
    out = case.step.expand_add_rms_norm(LAYER, group, residual, y, weight[0], EPS)

    near(residual, total, parts, 2)
    near(out, expected, parts / (total.pow(2).mean(1, keepdim=True) + EPS).sqrt() * weight[0].double().cpu(), 4)
    assert (case.scratch.arrived == 0).all()
    plain = separate.clone()
    normed = elementwise.add_rms_norm(plain, y, weight[0], EPS)
    assert torch.equal(out[base], normed[base])
    assert torch.equal(residual[base], plain[base])
    case.step.expand(LAYER, group, y)
    assert torch.equal(out, elementwise.add_rms_norm(separate, y, weight[0], EPS))
    assert torch.equal(residual, separate)


def test_the_tolerance_notices_an_expand_left_out(device: torch.device) -> None:
    case, x, gate_up = silu_case(torch.bfloat16, device, False)
    expected = reference_lora.lora_silu_and_mul(gate_up.double().cpu(), x.double().cpu(), case.adapted("gate_up"))

    with pytest.raises(AssertionError, match="times what"):
        near(elementwise.silu_and_mul(gate_up), expected, 3 * expected, 4)


def test_empty_batches_are_served(device: torch.device) -> None:
    case = make(ADAPTERS, (), torch.float32, device, rows=1)
    nothing = case.inputs(0, 256)

    assert case.step.expand_silu_and_mul(LAYER, case.inputs(0, 768)).shape == (0, 384)
    assert case.step.expand_add_rms_norm(LAYER, "o", nothing, nothing, nothing, EPS).shape == (0, 256)


def test_a_group_costs_two_launches_and_one_where_the_next_kernel_takes_its_expand_in(device: torch.device) -> None:
    """Launches that a layer has because of adapters: the norm and the activation would be there without them."""
    case = make(ADAPTERS, SEGMENTS[:1], torch.float32, device, rows=1, config=ODD)
    sizes = {"qkv": (100, 80), "o": (40, 100), "gate_up": (100, 104), "down": (52, 100)}
    separate, fused = {}, {}
    for group, (k, columns) in sizes.items():
        x, y, norm = case.inputs(1, k), case.inputs(1, columns), case.inputs(1, 100)
        case.step.launches = 0
        case.step(LAYER, group, x, y)
        separate[group], case.step.launches = case.step.launches, 0
        case.step.shrink(LAYER, group, x)
        if group == "gate_up":
            case.step.expand_silu_and_mul(LAYER, y)
        elif group != "qkv":
            case.step.expand_add_rms_norm(LAYER, group, norm, y, norm[0], EPS)
        if group != "qkv":  # its next kernel rotates and writes to pages
            fused[group] = case.step.launches - 1

    assert separate == {"qkv": 2, "o": 2, "gate_up": 2, "down": 2}
    assert fused == {"o": 1, "gate_up": 1, "down": 1}
