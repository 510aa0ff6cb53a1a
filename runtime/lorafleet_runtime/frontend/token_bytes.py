"""The bytes behind every token id: what detokenising is made of. Knows no requests and no stop strings."""

from __future__ import annotations

import json
import re
from typing import Any

from tokenizers import Tokenizer

from lorafleet_runtime.errors import ConfigError

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """`raw[id]` is what a token adds to the text, b"" for special ones; `shown(id)` is its text for logprobs.

    A text is the concatenation of its tokens' bytes, decoded as UTF-8 with U+FFFD for what is not. This holds
    for byte-level BPE and for SentencePiece with byte fallback; any other tokenizer raises ConfigError.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        piece_bytes = _piece_decoder(json.loads(tokenizer.to_str()).get("decoder"))
        vocab: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        added = tokenizer.get_added_tokens_decoder()
        size = max(vocab.values()) + 1
        self.raw: list[bytes] = [b""] * size
        self._special: dict[int, bytes] = {}
        for piece, token_id in vocab.items():
            if token_id not in added:
                self.raw[token_id] = piece_bytes(piece)
            elif added[token_id].special:
                self._special[token_id] = piece.encode()
            else:
                self.raw[token_id] = piece.encode()

    def of(self, token_id: int, show_special: bool = False) -> bytes:
        """A token's bytes; ids beyond the vocabulary (a model's padding rows) have none."""
        if show_special and token_id in self._special:
            return self._special[token_id]
        return self.raw[token_id] if 0 <= token_id < len(self.raw) else b""

    def shown(self, token_id: int) -> str:
        """A token by itself, special ones by their names, broken characters as U+FFFD."""
        return self.of(token_id, show_special=True).decode("utf-8", errors="replace")


def _piece_decoder(decoder: dict[str, Any] | None) -> Any:
    parts = [] if decoder is None else decoder.get("decoders", [decoder])
    kinds = {part["type"] for part in parts}
    if "ByteLevel" in kinds:
        return _byte_level
    if "ByteFallback" in kinds or "Metaspace" in kinds:
        return _sentencepiece
    raise ConfigError(
        f"--model: its tokenizer decodes by {sorted(kinds) or 'nothing'}; byte-level BPE and "
        "SentencePiece with byte fallback are known"
    )


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: printable Latin-1 bytes are themselves, the rest follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _byte_level(piece: str) -> bytes:
    try:
        return bytes([_ALPHABET[char] for char in piece])
    except KeyError:
        return piece.encode()


def _sentencepiece(piece: str) -> bytes:
    match = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(match[1], 16)]) if match else piece.replace("▁", " ").encode()
