"""One model's tokenizer: text to ids, its end tokens, its chat template. Knows no requests.

Built straight on `tokenizers` and jinja2 (0.7 s, 80 MB): going through transformers imports torch and costs
17 s and 700 MB at every start of a front end that needs neither.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lorafleet_runtime.constraints.constraint import Vocabulary
from lorafleet_runtime.errors import ConfigError
from lorafleet_runtime.frontend.chat import ChatTemplate, pick_template
from lorafleet_runtime.frontend.gguf_tokenizer import build_tokenizer
from lorafleet_runtime.frontend.token_bytes import TokenBytes
from lorafleet_runtime.gguf_header import read_header
from lorafleet_runtime.model.errors import CheckpointError

# Below this a prompt is encoded in under a millisecond, less than a thread's hand-over costs the loop.
_INLINE_CHARACTERS = 4096
# A turn's or a document's end under these names ends generation, whatever else the metadata names.
_END_NAMES = ("<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "</s>")
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True, slots=True)
class ModelTokenizer:
    """Everything textual about a base model."""

    backend: Tokenizer
    bytes: TokenBytes
    chat: ChatTemplate
    eos_token_ids: tuple[int, ...]

    @property
    def vocabulary(self) -> Vocabulary:
        """What the engine must know to have its output obey a constraint."""
        return Vocabulary(self.bytes.raw, self.eos_token_ids)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of a text; special tokens written in it are taken as such."""
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    async def encode_async(self, text: str, add_special_tokens: bool) -> list[int]:
        """As `encode`; a long text goes to a thread, so that streams on this loop keep flowing."""
        if len(text) <= _INLINE_CHARACTERS:
            return self.encode(text, add_special_tokens)
        return await asyncio.to_thread(self.encode, text, add_special_tokens)


def load_tokenizer(model: str) -> ModelTokenizer:
    """From a folder (tokenizer.json, its companions) or a .gguf file, where a tokenizer.json beside it wins.

    Raises ConfigError naming the file that is missing or not understood.
    """
    path = Path(model)
    if path.is_dir():
        return _from_folder(path)
    try:
        header = read_header(path).text()
    except CheckpointError as error:
        raise ConfigError(f"--model {path}: not a readable GGUF file: {error}") from None
    beside = path.parent / "tokenizer.json"
    backend = Tokenizer.from_file(str(beside)) if beside.exists() else build_tokenizer(header)
    return _from_gguf(header, backend)


def _from_gguf(header: dict[str, Any], backend: Tokenizer) -> ModelTokenizer:
    tokens: list[str] = header["tokenizer.ggml.tokens"]
    keys = {name: f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "eot", "eom")}
    ids: dict[str, int] = {name: header[key] for name, key in keys.items() if key in header}
    special = {f"{name}_token": tokens[ids[name]] for name in ("bos", "eos") if name in ids}
    ends = [ids[name] for name in ("eos", "eot", "eom") if name in ids]
    return _assemble(backend, header.get("tokenizer.chat_template"), special, ends)


def _from_folder(folder: Path) -> ModelTokenizer:
    file = folder / "tokenizer.json"
    if not file.exists():
        raise ConfigError(f"--model {folder}: no tokenizer.json there, the only tokenizer file that is read")
    config = _read_json(folder / "tokenizer_config.json")
    template_file = folder / "chat_template.jinja"
    template = pick_template(config.get("chat_template"))
    if template_file.exists():
        template = template_file.read_text()
    special = {name: _content(config[name]) for name in _SPECIAL_NAMES if config.get(name)}
    backend = Tokenizer.from_file(str(file))
    ends = [
        *_as_ids(_read_json(folder / "generation_config.json").get("eos_token_id")),
        *_as_ids(_read_json(folder / "config.json").get("eos_token_id")),
        *_as_ids(backend.token_to_id(special["eos_token"]) if "eos_token" in special else None),
    ]
    return _assemble(backend, template, special, ends)


def _assemble(backend: Tokenizer, template: str | None, special: dict[str, str], ends: Iterable[int]) -> ModelTokenizer:
    backend.no_truncation()
    backend.no_padding()
    added = backend.get_added_tokens_decoder()
    named = [token_id for token_id, token in added.items() if token.special and token.content in _END_NAMES]
    return ModelTokenizer(backend, TokenBytes(backend), ChatTemplate(template, special), tuple(sorted({*ends, *named})))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"--model: {path} is not JSON: {error}") from None
    return values


def _content(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _as_ids(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)
