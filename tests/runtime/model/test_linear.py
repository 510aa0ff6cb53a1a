"""Every form of a product gives the same numbers, and choosing one never changes what a model says."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from lorafleet_kernels.dispatch import operations
from lorafleet_kernels.operations import Operations
from lorafleet_runtime.model import calibration
from lorafleet_runtime.model.calibration import choose_forms
from lorafleet_runtime.model.decoder import Decoder
from lorafleet_runtime.model.linear import Form, Linear, fastest_form, forms, laid_out
from lorafleet_runtime.model.threads import on_all_threads, set_threads, threads
from lorafleet_runtime.model.tiny import random_weights, tiny_config


@pytest.mark.parametrize("bias", [False, True], ids=["without bias", "with bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_form_that_this_machine_has_computes_the_same_product(dtype: torch.dtype, bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    ops = operations(dtype, torch.device("cpu"), threads)
    weight = torch.randn(48, 32, generator=generator).to(dtype)
    b = torch.randn(48, generator=generator).to(dtype) if bias else None
    offered = {*forms(weight, ops, keeping=True), *forms(weight, ops, keeping=False)}
    assert {Form.PLAIN, Form.SWAPPED, Form.PACKED} <= offered
    for form in offered:
        linear = Linear(weight, b)
        linear.use(form, ops)
        for rows in (1, 7, 16, 33, 70):
            x = torch.randn(rows, 32, generator=generator).to(dtype)
            expected = torch.nn.functional.linear(x, weight, b)
            torch.testing.assert_close(linear(x), expected, atol=2e-5 if dtype is torch.float32 else 0.05, rtol=0.02)


def test_the_chosen_form_is_one_of_the_allowed() -> None:
    ops = operations(torch.float32, torch.device("cpu"), threads)
    assert fastest_form(torch.randn(64, 32), (Form.PLAIN, Form.SWAPPED), ops, repeats=1) is not Form.PACKED


def test_forms_that_keep_a_weight_leave_it_as_it_lies() -> None:
    ops = operations(torch.bfloat16, torch.device("cpu"), threads)
    weight = torch.randn(64, 32).to(torch.bfloat16)
    assert all(laid_out(form, weight, ops) is weight for form in forms(weight, ops, keeping=True))


def test_a_tied_output_matrix_is_never_packed() -> None:
    config = tiny_config(tie_word_embeddings=True)
    model = Decoder(config, random_weights(config, 0), 64)
    choose_forms(model)
    assert model.lm_head.weight.shape == model.embedding.shape
    assert model.lm_head.weight.data_ptr() == model.embedding.data_ptr()


def _packed_wherever_it_may(weight: Tensor, allowed: tuple[Form, ...], ops: Operations, **_: object) -> Form:
    return Form.PACKED if Form.PACKED in allowed else allowed[0]


def test_between_two_measurements_as_much_is_read_as_a_step_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def measured(weight: Tensor, allowed: tuple[Form, ...], ops: Operations, *, step_bytes: int) -> Form:
        told.append(step_bytes)
        return allowed[0]

    monkeypatch.setattr(calibration, "fastest_form", measured)
    config = tiny_config(tie_word_embeddings=False)
    weights = random_weights(config, 0)
    read = sum(tensor.nbytes for name, tensor in weights.items() if tensor.dim() == 2 and name != "embed_tokens.weight")
    choose_forms(Decoder(config, weights, 64))

    assert set(told) == {read}


def test_a_model_whose_output_matrix_is_packed_says_what_it_said_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "fastest_form", _packed_wherever_it_may)
    config = tiny_config(tie_word_embeddings=False)
    model = Decoder(config, random_weights(config, 0), 64)
    embedding, x = model.embedding.clone(), torch.randn(3, config.hidden_size)
    expected = model.lm_head(x)
    choose_forms(model)
    assert model.lm_head.weight.is_mkldnn
    assert torch.equal(model.embedding, embedding)
    torch.testing.assert_close(model.lm_head(x), expected, atol=2e-5, rtol=0.02)


def test_a_tied_output_matrix_stays_plain_beside_a_packed_product_of_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "fastest_form", _packed_wherever_it_may)
    shape = tiny_config(tie_word_embeddings=True)
    config = dataclasses.replace(shape, vocab_size=2 * shape.intermediate_size)  # the shape of gate and up as one
    model = Decoder(config, random_weights(config, 0), 64)
    choose_forms(model)
    assert any(linear.weight.is_mkldnn and linear.shape == model.lm_head.shape for linear in model.linears())
    assert model.lm_head.weight.data_ptr() == model.embedding.data_ptr()


def test_a_ranks_part_of_a_tied_output_matrix_does_not_become_its_embedding() -> None:
    config = tiny_config(tie_word_embeddings=True)
    weights = random_weights(config, 0)
    weights["lm_head.weight"] = weights["embed_tokens.weight"][: config.vocab_size // 2]
    whole = weights["embed_tokens.weight"].clone()
    model = Decoder(config, weights, 64)
    choose_forms(model)
    assert torch.equal(model.embedding, whole)


def test_only_large_operations_use_all_threads() -> None:
    @on_all_threads
    def large() -> int:
        return torch.get_num_threads()

    set_threads(2)
    assert (large(), torch.get_num_threads()) == (2, 1)


def test_an_error_in_a_large_operation_leaves_one_thread() -> None:
    @on_all_threads
    def fails() -> None:
        raise ValueError("shapes")

    set_threads(2)
    with pytest.raises(ValueError, match="shapes"):
        fails()
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("outputs", [48, 64])
def test_a_weight_comes_back_from_the_layout_of_tiles(outputs: int) -> None:
    ops = operations(torch.bfloat16, torch.device("cpu"), threads)
    weight = torch.randn(outputs, 96).to(torch.bfloat16)
    if not ops.tiles_fit(weight):
        pytest.skip("this processor has no matrix tiles")
    linear = Linear(weight.clone())
    linear.use(Form.TILES, ops)
    assert torch.equal(linear.plain(), weight)
