"""Moments as the Kubernetes API writes them (RFC 3339, UTC)."""

from __future__ import annotations

from datetime import UTC, datetime


def timestamp(at: datetime | None = None) -> str:
    """`metav1.Time`, in seconds; now unless `at` says otherwise."""
    return (at or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_timestamp(at: datetime | None = None) -> str:
    """`metav1.MicroTime`, in microseconds; now unless `at` says otherwise."""
    return (at or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
