"""Guesses at what a sequence says next, from what it has read and said: prompt lookup.

Text that quotes, edits or sums up its prompt repeats runs of its tokens. The tokens after the latest earlier occurrence
of the last few are therefore a good guess, which costs no model and fits every adapter [Saxena 2023, prompt lookup
decoding]. Whether it was right is noticed for every token, also when nothing was proposed: so a sequence that repeats
nothing stops proposing, and one that begins to repeat starts again, without a step spent on finding out. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

LONGEST, SHORTEST = 4, 2
"""Tokens that have to be the same, at most and at least; longer ones go before shorter ones."""
FIRST_CHANCE = 0.5
NEW = 0.2
"""Weight of the newest guess in the chance of the next."""
LEAST_WORTH = 0.3
"""Chances are estimates: a guess with less is never proposed."""
FREE_TOKENS = 24
"""So many tokens take as long to compute as a step takes to read its weights. Measured on two cores with matrix tiles;
more on a GPU, where this rule is only too careful."""


def worth(tokens: int) -> float:
    """The chance to be right, with all guesses before it, that pays for one more token in a step of so many.

    A step takes read + tokens · each; without guesses a token made costs that over its tokens. A guess costs `each`."""
    return max(LEAST_WORTH, tokens / (tokens + FREE_TOKENS))


class Drafter:
    """One sequence's index of what followed what. O(1) a token."""

    def __init__(self, prompt_len: int) -> None:
        self.chances = dict.fromkeys(range(SHORTEST, LONGEST + 1), FIRST_CHANCE)
        """By tokens that were the same: how often the next one was, too, of late."""
        self._prompt_len = prompt_len
        self._ends: dict[int, dict[tuple[int, ...], int]] = {size: {} for size in range(LONGEST, SHORTEST - 1, -1)}
        self._read = 0
        self._from = -1  # where what the last tokens were followed by begins; -1: they are new
        self._size = 0

    def read(self, tokens: Sequence[int], until: int) -> None:
        """Take up the first `until` of a sequence's tokens; those that it has read are not looked at again."""
        for end in range(self._read + 1, until + 1):
            if self._from >= 0 and end > self._prompt_len:
                right = tokens[self._from] == tokens[end - 1]
                self.chances[self._size] += NEW * (right - self.chances[self._size])
            self._from = -1
            for size, ends in self._ends.items():
                if size > end:
                    continue
                key = tuple(tokens[end - size : end])
                if self._from < 0 and (found := ends.get(key, -1)) >= 0:
                    self._from, self._size = found, size
                ends[key] = end
        self._read = max(self._read, until)

    def propose(self, tokens: Sequence[int], most: int, least: float = LEAST_WORTH) -> list[int]:
        """What probably follows the tokens that it has read, which are the first of `tokens`: at most so many, of which
        the last has a chance of `least`. What repeats itself is followed beyond its end."""
        drafts: list[int] = []
        for _ in zip(range(most), self._chances(least), strict=False):
            at = self._from + len(drafts)
            drafts.append(tokens[at] if at < self._read else drafts[at - self._read])
        return drafts

    def expected(self, most: int) -> float:
        """How many of as many proposals will be right, on average."""
        return sum(chance for _, chance in zip(range(most), self._chances(LEAST_WORTH), strict=False))

    def _chances(self, least: float) -> Iterator[float]:
        """Each further guess's chance to be right with all before it, while that is enough."""
        if self._from < 0:
            return
        chance, size = self.chances[self._size], self._size
        while chance >= least:
            yield chance
            size = min(size + 1, LONGEST)
            chance *= self.chances[size]
