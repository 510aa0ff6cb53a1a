"""Builds a `tokenizers.Tokenizer` from a GGUF file's metadata, splitting text as `tokenizer.ggml.pre` says.

General converters give every byte-level BPE model GPT-2's splitting. For SmolLM that is wrong wherever a
number follows two or more spaces, so the rule is looked up here, and an unknown one is refused, not guessed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lorafleet_runtime.errors import ConfigError

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = {"llama-bpe": _LLAMA3, "llama-v3": _LLAMA3, "llama3": _LLAMA3, "qwen2": _QWEN2, "tekken": _TEKKEN}
_DIGITS_THEN_GPT2 = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva")
_GPT2 = ("gpt-2", "default", "phi-2", "mpt", "olmo", "jais")


def build_tokenizer(header: dict[str, Any]) -> Tokenizer:
    """The tokenizer that the metadata describes. ConfigError for a kind or splitting rule not known."""
    kind = header.get("tokenizer.ggml.model")
    tokens: list[str] = header.get("tokenizer.ggml.tokens", [])
    if kind == "gpt2":
        tokenizer = _byte_level_bpe(tokens, header)
    elif kind == "llama":
        tokenizer = _sentencepiece_bpe(tokens, header)
    else:
        raise ConfigError(
            f"--model: tokenizer.ggml.model is {kind!r}; gpt2 and llama are known. "
            "Put the model's tokenizer.json beside the .gguf file"
        )
    types: list[int] = header.get("tokenizer.ggml.token_type", [])
    tokenizer.add_special_tokens(list(_added(tokens, types, _CONTROL)))
    tokenizer.add_tokens(list(_added(tokens, types, _USER_DEFINED)))
    _add_bos_when_asked(tokenizer, tokens, header)
    return tokenizer


def _byte_level_bpe(tokens: list[str], header: dict[str, Any]) -> Tokenizer:
    pre = header.get("tokenizer.ggml.pre", "default")
    merges = [tuple(merge.split(" ", 1)) for merge in header["tokenizer.ggml.merges"]]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre in _PATTERNS))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre not in _PATTERNS)
    if pre in _PATTERNS:
        split = pre_tokenizers.Split(Regex(_PATTERNS[pre]), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    elif pre in _DIGITS_THEN_GPT2:
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    elif pre in _GPT2:
        tokenizer.pre_tokenizer = byte_level
    else:
        raise ConfigError(
            f"--model: how tokenizer.ggml.pre {pre!r} splits text is not known here. "
            "Put the model's tokenizer.json beside the .gguf file"
        )
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece_bpe(tokens: list[str], header: dict[str, Any]) -> Tokenizer:
    vocab = {token: index for index, token in enumerate(tokens)}
    types: list[int] = header.get("tokenizer.ggml.token_type", [])
    merges = list(_merges(vocab, header["tokenizer.ggml.scores"], types))
    unknown = tokens[header.get("tokenizer.ggml.unknown_token_id", 0)]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    space: list[normalizers.Normalizer] = [normalizers.Replace(" ", "▁")]
    if header.get("tokenizer.ggml.add_space_prefix", True):
        space.insert(0, normalizers.Prepend("▁"))
    tokenizer.normalizer = normalizers.Sequence(space)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def _merges(vocab: dict[str, int], scores: list[float], types: list[int]) -> Iterator[tuple[str, str]]:
    """A SentencePiece model stores scores, not merges: each split in two pieces merges, best score first."""
    pieces = [piece for piece, index in vocab.items() if not types or types[index] == _NORMAL]
    for piece in sorted(pieces, key=lambda piece: -scores[vocab[piece]]):
        splits = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        known = [(left, right) for left, right in splits if left in vocab and right in vocab]
        yield from sorted(known, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))


def _added(tokens: list[str], types: list[int], kind: int) -> Iterator[AddedToken]:
    for token, token_type in zip(tokens, types, strict=False):
        if token_type == kind:
            yield AddedToken(token, special=kind == _CONTROL, normalized=False)


def _add_bos_when_asked(tokenizer: Tokenizer, tokens: list[str], header: dict[str, Any]) -> None:
    # llama.cpp's defaults where the key is absent
    default = header["tokenizer.ggml.model"] == "llama" or "llama" in header.get("tokenizer.ggml.pre", "")
    bos = header.get("tokenizer.ggml.bos_token_id")
    if bos is not None and header.get("tokenizer.ggml.add_bos_token", default):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", pair=f"{tokens[bos]} $A $B", special_tokens=[(tokens[bos], bos)]
        )
