"""An `AttentionTuning` as it stands in a file."""

from __future__ import annotations

from typing import Any

from lorafleet_kernels.gpu.forms.attention import DecodeTiles, PrefillTiles
from lorafleet_kernels.gpu.tuning.attention.lookup import (
    AttentionForm,
    AttentionTuning,
    Heads,
    Measured,
    Phase,
    Sequences,
)
from lorafleet_kernels.gpu.tuning.fields import Malformed, as_microseconds, get, microseconds, positive


def to_record(tuning: AttentionTuning) -> dict[str, Any]:
    """`from_record` reads it."""
    heads, form = tuning.heads, tuning.form
    return {
        "phase": tuning.phase.value,
        "form": str(form),
        **({"resident": form.resident} if isinstance(form, DecodeTiles) else {}),
        "heads": {
            "heads": heads.heads,
            "kv_heads": heads.kv_heads,
            "size": heads.size,
            "dtype": heads.dtype,
            "kv": heads.kv,
        },
        "measured": [
            {
                "sequences": one.sequences.count,
                "new": one.sequences.new,
                "cached": one.sequences.cached,
                "microseconds": as_microseconds(one.seconds),
                "default_microseconds": as_microseconds(one.default_seconds),
            }
            for one in tuning.measured
        ],
    }


def from_record(record: object, where: str) -> AttentionTuning:
    """Raises Malformed. Whether the form ships is not asked here."""
    heads, at = get(record, "heads", dict, where), f"{where}.heads"
    queries, kv_heads, size = (positive(heads, name, at) for name in ("heads", "kv_heads", "size"))
    dtype, kv = (get(heads, name, str, at) for name in ("dtype", "kv"))
    measured = [
        _measured(one, f"{where}.measured[{i}]") for i, one in enumerate(get(record, "measured", list, where))
    ]
    try:
        return AttentionTuning(Heads(queries, kv_heads, size, dtype, kv), _form(record, where), tuple(measured))
    except ValueError as error:
        raise Malformed(f"{where}: {error}") from None


def _form(record: object, where: str) -> AttentionForm:
    phase, text = get(record, "phase", str, where), get(record, "form", str, where)
    if phase not in list(Phase):
        raise Malformed(f"{where}.phase: {phase!r} is none of {', '.join(Phase)}")
    resident = positive(record, "resident", where) if phase == Phase.DECODE else 0
    try:
        return DecodeTiles.parse(text, resident) if phase == Phase.DECODE else PrefillTiles.parse(text)
    except ValueError as error:
        raise Malformed(f"{where}.form: {error}") from None


def _measured(record: object, where: str) -> Measured:
    sequences = Sequences(
        positive(record, "sequences", where), positive(record, "new", where), positive(record, "cached", where, 0)
    )
    names = ("microseconds", "default_microseconds")
    return Measured(sequences, *(microseconds(record, name, where) for name in names))
