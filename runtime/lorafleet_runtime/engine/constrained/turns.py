"""Whose turn it is, where one is served at a time: each tenant's are in order, and tenants take turns."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Turns(Generic[Item]):
    """A queue per tenant; false when all are empty."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Item]] = {}

    def __bool__(self) -> bool:
        return bool(self._queues)

    def add(self, tenant: str, item: Item) -> None:
        self._queues.setdefault(tenant, deque()).append(item)

    def next(self) -> Item:
        """The first item of the tenant whose turn it is, which then goes to the end. Raises StopIteration if empty."""
        tenant = next(iter(self._queues))
        queue = self._queues.pop(tenant)
        item = queue.popleft()
        if queue:
            self._queues[tenant] = queue
        return item

    def drop(self, gone: Callable[[Item], bool]) -> None:
        """Forget the items for which `gone` holds."""
        left = {tenant: deque(i for i in items if not gone(i)) for tenant, items in self._queues.items()}
        self._queues = {tenant: items for tenant, items in left.items() if items}
