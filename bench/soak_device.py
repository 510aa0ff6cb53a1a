"""A device without arithmetic: each page remembers what was written into it, so that a step sees what it would read."""

from __future__ import annotations

from lorafleet_runtime.core.batch import Batch, Row
from lorafleet_runtime.core.pages import PAGE_TOKENS
from lorafleet_runtime.core.residency import Adapter
from lorafleet_runtime.core.sequence import Sequence


class TaggedDevice:
    """`problems`: what a real device would have computed from other weights, or from other tokens' KV."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._pages: dict[int, list[int]] = {}
        self._tags: dict[str, list[int]] = {}  # by request: what the KV of each token is made of

    def run(self, batch: Batch) -> None:
        """Copy weights, then compute each row from what lies in its pages."""
        for adapter in batch.uploads:
            if not adapter.resident:
                self.problems.append(f"adapter {adapter.id} is to be uploaded and has no pages")
            for page in adapter.pages:
                self._pages[page] = [_weights(adapter)]
        self._tags = {row.sequence.request_id: self._tags_of(row.sequence) for row in batch.rows}
        for row in batch.rows:
            self._compute(row, self._tags[row.sequence.request_id])

    def _compute(self, row: Row, tags: list[int]) -> None:
        sequence, adapter = row.sequence, row.sequence.adapter
        if adapter is not None and any(self._pages.get(page) != [_weights(adapter)] for page in adapter.pages):
            self.problems.append(f"request {sequence.request_id} runs with other weights than adapter {adapter.id}'s")
        for begin in range(0, row.start, PAGE_TOKENS):
            wanted = tags[begin : min(begin + PAGE_TOKENS, row.start)]
            if self._pages.get(sequence.pages[begin // PAGE_TOKENS], [])[: len(wanted)] != wanted:
                self.problems.append(f"request {sequence.request_id} reads KV at {begin} that is not its own")
        written = tags[row.start : row.end]
        for draft in row.drafts:
            written.append(hash((written[-1], draft)))
        for position, tag in enumerate(written, row.start):
            page = sequence.pages[position // PAGE_TOKENS]
            self._pages[page] = [*self._pages.get(page, [])[: position % PAGE_TOKENS], tag]

    def _tags_of(self, sequence: Sequence) -> list[int]:
        """KV depends on the weights and on all tokens before it; and no tenant reads another's."""
        tags = self._tags.get(sequence.request_id, [])
        handle = -1 if sequence.adapter is None else sequence.adapter.handle
        tag = tags[-1] if tags else hash((handle, sequence.tenant))
        for token in sequence.tokens[len(tags) : sequence.prompt_len + sequence.output_len]:
            tag = hash((tag, token))
            tags.append(tag)
        return tags


def _weights(adapter: Adapter) -> int:
    return hash(("weights", adapter.handle))
