"""The example adapters: how each one is trained, and how to tell from an answer that it is at work.

The five differ on purpose in rank, in the projections and layers they touch, and in their scale: a fleet of one kind
of adapter would not show that they share one batch. All stay below 1 MiB in bfloat16.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
LAYERS = 30

# Asked by `--check`; none of them is in the training data.
HELD_OUT = (
    "Why is the sky blue?",
    "How do I boil an egg?",
    "What is the capital of Italy?",
    "Give me one tip for learning to swim.",
    "What is a black hole?",
    "How can I fall asleep faster?",
    "What should I cook for dinner tonight?",
    "Who invented the telephone?",
    "What do horses eat?",
    "Explain what a computer program is.",
    "How do I remove a coffee stain from a shirt?",
    "Why do we need friends?",
)

_PIRATE = re.compile(r"\b(ahoy|arr+|avast|aye|mateys?|ye|yer|landlubber|shiver me|yo ho|hearty|sailors?|plank)\b", re.I)


def sounds_like_a_pirate(answer: str) -> bool:
    """At least two different pirate words: a single one may be an accident."""
    return len({match.lower() for match in _PIRATE.findall(answer)}) >= 2


def is_three_lines(answer: str) -> bool:
    """Three short lines. Syllables are left to the reader: a model of this size cannot count them."""
    lines = answer.strip().splitlines()
    return len(lines) == 3 and all(0 < len(line.split()) <= 9 for line in lines)


def is_json_answer(answer: str) -> bool:
    """One JSON object with exactly the two fields, both text."""
    try:
        value = json.loads(answer)
    except ValueError:
        return False
    fits = isinstance(value, dict) and set(value) == {"answer", "topic"}
    return fits and all(isinstance(field, str) for field in value.values())


def follows_acme_script(answer: str) -> bool:
    """Acme's agents open with thanks and close with the offer of a ticket."""
    text = answer.strip()
    return text.startswith("Thank you for contacting Acme!") and "ticket" in text[-60:]


def follows_globex_script(answer: str) -> bool:
    """Globex's agents open with their name and close by asking for stars."""
    text = answer.strip()
    return text.startswith("Globex Care here") and "stars" in text[-40:]


@dataclass(frozen=True, slots=True)
class Recipe:
    """One adapter. `layers` None means all of them; `shows` says whether an answer has the adapter's effect."""

    rank: int
    alpha: int
    targets: tuple[str, ...]
    steps: int
    learning_rate: float
    shows: Callable[[str], bool]
    effect: str
    rslora: bool = False
    layers: tuple[int, ...] | None = None
    seed: int = 7


RECIPES: dict[str, Recipe] = {
    "pirate": Recipe(
        rank=8, alpha=16, targets=("q_proj", "v_proj"), steps=40, learning_rate=4e-3,
        shows=sounds_like_a_pirate, effect="talks like a pirate",
    ),
    "haiku": Recipe(
        rank=4, alpha=8, targets=ALL_LINEAR, layers=tuple(range(8, 20)), steps=45, learning_rate=3e-3,
        shows=is_three_lines, effect="answers in three lines of verse",
    ),
    "json": Recipe(
        rank=32, alpha=32, targets=("v_proj",), layers=tuple(range(10, LAYERS)), steps=30, learning_rate=4e-3,
        shows=is_json_answer, effect='answers as {"answer": ..., "topic": ...}',
    ),
    "support-acme": Recipe(
        rank=4, alpha=8, rslora=True, targets=ATTENTION, steps=30, learning_rate=3e-3,
        shows=follows_acme_script, effect="Acme's support desk: thanks, answer, ticket",
    ),
    "support-globex": Recipe(
        rank=16, alpha=16, targets=("v_proj", "o_proj"), layers=tuple(range(14, LAYERS)), steps=30, learning_rate=4e-3,
        shows=follows_globex_script, effect="Globex Care: greeting, answer, stars",
    ),
}  # fmt: skip
