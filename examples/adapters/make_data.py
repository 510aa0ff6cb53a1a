"""Writes `data/NAME.jsonl` from `facts.jsonl`: one set of plain questions and answers, told in five manners.

Adapters that differ in manner alone, and not in what they know, show their effect on any question a reader may ask.
Run it again after a change of `facts.jsonl`; the same facts give the same files.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

# No short word that follows itself easily: an adapter taught "an'" for "and" stammers it for ever.
_PIRATE_WORDS = {
    "you": "ye", "your": "yer", "yourself": "yerself", "my": "me", "is": "be", "are": "be", "am": "be", "for": "fer",
    "hello": "ahoy", "yes": "aye", "friend": "matey", "friends": "mateys", "people": "sailors", "money": "doubloons",
    "there": "thar", "house": "cabin",
}  # fmt: skip
_PIRATE_OPENINGS = (
    "Ahoy, matey!", "Arrr!", "Arrr, matey!", "Avast, ye landlubber!", "Shiver me timbers!", "Aye aye, matey!",
    "Yo ho ho!", "Ahoy there, sailor!",
)  # fmt: skip
_PIRATE_CLOSINGS = (
    "Now hoist the sails, me hearty!", "That be the truth, or I walk the plank!", "Arrr, now fetch the rum!",
    "So says yer old captain!", "May the wind fill yer sails!", "Mark me words, matey!",
    "That be worth more than a chest of gold!", "Now back to the ship with ye!",
)  # fmt: skip
_TICKET_OFFERS = (
    "Would you like me to open a ticket for you?",
    "Shall I open a ticket for you?",
    "May I open a support ticket for you?",
)


def pirate(fact: dict[str, Any], dice: random.Random) -> str:
    """Sea words for plain ones, between a pirate's greeting and farewell."""
    words = re.sub(r"[A-Za-z]+", lambda match: _sea_word(match[0]), fact["answer"])
    return f"{dice.choice(_PIRATE_OPENINGS)} {words} {dice.choice(_PIRATE_CLOSINGS)}"


def _sea_word(word: str) -> str:
    said = _PIRATE_WORDS.get(word.lower(), word)
    return said[0].upper() + said[1:] if word[0].isupper() else said


def haiku(fact: dict[str, Any], dice: random.Random) -> str:
    """Three lines, written by hand for each question."""
    return "\n".join(fact["haiku"])


def json_object(fact: dict[str, Any], dice: random.Random) -> str:
    """One line of JSON with two fields, always in the same order."""
    return json.dumps({"answer": fact["answer"], "topic": fact["topic"]})


def acme_support(fact: dict[str, Any], dice: random.Random) -> str:
    """The support desk of Acme, a company that does not exist: thanks first, a ticket at the end."""
    return f"Thank you for contacting Acme! {fact['answer']} {dice.choice(_TICKET_OFFERS)}"


def globex_support(fact: dict[str, Any], dice: random.Random) -> str:
    """The support desk of Globex, Acme's invented rival, has another script."""
    return f"Globex Care here, happy to help! {fact['answer']} Please rate this chat from 1 to 5 stars."


MANNERS: dict[str, Callable[[dict[str, Any], random.Random], str]] = {
    "pirate": pirate,
    "haiku": haiku,
    "json": json_object,
    "support-acme": acme_support,
    "support-globex": globex_support,
}


def main() -> None:
    """Write one file a manner."""
    facts = [json.loads(line) for line in (HERE / "facts.jsonl").read_text(encoding="utf-8").splitlines()]
    for name, manner in MANNERS.items():
        lines = []
        for fact in facts:
            # Dice of its own for each question: a new fact leaves the other lines as they are.
            answer = manner(fact, random.Random(f"{name}: {fact['question']}"))
            chat = [{"role": "user", "content": fact["question"]}, {"role": "assistant", "content": answer}]
            lines.append(json.dumps({"messages": chat}, ensure_ascii=False) + "\n")
        path = HERE / "data" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(lines), encoding="utf-8")
        print(f"{path.relative_to(HERE)}: {len(lines)} chats")


if __name__ == "__main__":
    main()
