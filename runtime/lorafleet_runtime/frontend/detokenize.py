"""From token ids to text as they arrive: whole characters only, stop strings found and held back.

Text leaves only at token boundaries, together with the ids behind it. So the ids a client has been given
always stand for exactly the text it has been given, and a request can be resumed elsewhere from them.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field

from lorafleet_runtime.frontend.token_bytes import TokenBytes
from lorafleet_runtime.protocol import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Piece:
    """Text ready to leave; `offsets` are where tokens start in the whole text; `stopped` by which string."""

    text: str
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    stopped: str | None = None


@dataclass(frozen=True, slots=True)
class _Held:
    token_id: int
    logprobs: TokenLogprobs | None
    start: int
    end: int
    whole: bool  # no character is broken after it


class Detokenizer:
    """One request's text. Feed ids in order; the concatenation of the pieces' texts is the whole text.

    The text is what decoding all ids at once gives. What may begin a stop string is kept back,
    with the rest of the token it begins in.
    """

    def __init__(
        self,
        table: TokenBytes,
        stop: Sequence[str] = (),
        *,
        include_stop: bool = False,
        show_special: bool = False,
    ) -> None:
        self._table = table
        self._stop = tuple(stop)
        self._longest = max((len(text) for text in stop), default=0)
        self._include_stop = include_stop
        self._show_special = show_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._tail = ""  # the end of the text: what is not yet sent, and what a stop string may start in
        self._tail_start = 0  # positions count characters of the whole text
        self._sent = 0
        self.count = 0  # tokens taken, those of a resumed request included
        self._held: list[_Held] = []

    def resume(self, token_ids: Sequence[int]) -> str | None:
        """Take ids that were delivered elsewhere, text and all; returns the stop string they already hold."""
        for token_id in token_ids:
            stopped = self._append(token_id, None)
            if stopped is not None:
                return stopped[1]
        self._sent = self._held[-1].end if self._held else 0
        self._held.clear()
        return None

    def feed(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs] = ()) -> Piece:
        """The text that these tokens make certain; after a stop string the other tokens are not looked at."""
        for index, token_id in enumerate(token_ids):
            found = self._append(token_id, logprobs[index] if logprobs else None)
            if found is not None:
                start, stop = found
                end = start + len(stop) if self._include_stop else start
                return self._release(end, len(self._held), stop)
        limit = self._tail_start + len(self._tail) - self._possible_stop()
        count = len(self._held)
        while count and not (self._held[count - 1].whole and self._held[count - 1].end <= limit):
            count -= 1
        return self._release(self._held[count - 1].end if count else self._sent, count, None)

    def finish(self, stop_token_id: int | None = None, logprobs: TokenLogprobs | None = None) -> Piece:
        """Everything held, at the end. The stop token, where one ended it, is an id without text."""
        self._tail += self._utf8.decode(b"", True)
        end = self._tail_start + len(self._tail)
        if stop_token_id is not None:
            self.count += 1
            self._held.append(_Held(stop_token_id, logprobs, end, end, True))
        return self._release(end, len(self._held), None)

    def _append(self, token_id: int, logprobs: TokenLogprobs | None) -> tuple[int, str] | None:
        """Adds a token; answers where a stop string begins, and which, when this token completed one."""
        self.count += 1
        start = self._tail_start + len(self._tail)
        text = self._utf8.decode(self._table.of(token_id, self._show_special))
        self._tail += text
        end = start + len(text)
        self._held.append(_Held(token_id, logprobs, start, end, not self._utf8.getstate()[0]))
        if not self._stop or not text:
            return None
        # A match that ends before this token's text would have been found earlier.
        from_ = max(start - self._tail_start - self._longest + 1, 0)
        found = [(at, stop) for stop in self._stop if (at := self._tail.find(stop, from_)) >= 0]
        if not found:
            return None
        at, stop = min(found, key=lambda match: match[0])
        return self._tail_start + at, stop

    def _possible_stop(self) -> int:
        """Characters at the end of the text that may be the beginning of a stop string."""
        for length in range(min(self._longest - 1, len(self._tail)), 0, -1):
            end = self._tail[-length:]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0

    def _release(self, end: int, count: int, stopped: str | None) -> Piece:
        leaving = self._held[:count]
        del self._held[:count]
        text = self._tail[self._sent - self._tail_start : max(end, self._sent) - self._tail_start]
        self._sent = max(end, self._sent)
        keep_from = max(min(self._sent, self._tail_start + len(self._tail) - self._longest), self._tail_start)
        self._tail = self._tail[keep_from - self._tail_start :]
        self._tail_start = keep_from
        return Piece(
            text,
            [held.token_id for held in leaving],
            [held.logprobs for held in leaving if held.logprobs is not None],
            [held.start for held in leaving],
            stopped,
        )
