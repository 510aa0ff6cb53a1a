"""The validating webhook: AdmissionReviews in, what `core.review` says out. It reads the store and writes nothing.

Whatever it cannot judge it lets through: conditions say later what is wrong. An operator that waits for the Lease
answers too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import structlog
from aiohttp import web
from prometheus_client import Counter

from lorafleet_operator.core.review import Review, review
from lorafleet_operator.errors import UsageError
from lorafleet_operator.kube.certificate import Certificate
from lorafleet_operator.kube.settings import WebhookSettings
from lorafleet_operator.kube.store import Store

log = structlog.get_logger("webhook")

REVIEWS = Counter("lorafleet_operator_reviews", "Objects that the API asked about", ("kind", "outcome"))
MOST_BYTES = 8 << 20
STOP_SECONDS = 2.0
BEHIND_SECONDS = 0.2
"""Watches are a little behind `kubectl apply` of several objects: before anything is said, they get so long."""
LASTING_SECONDS = 10.0
"""What they did not heal is said at once for so long: ten thousand adapters of one missing base model wait once."""


class Webhook:
    """Serves `POST /validate` over TLS."""

    def __init__(self, settings: WebhookSettings, store: Store, namespaces: tuple[str, ...] = ()) -> None:
        self._settings = settings
        self._store = store
        self._namespaces = namespaces
        self._lasting: dict[str, float] = {}

    async def run(self) -> None:
        """Serve until cancelled. Raises UsageError when the port cannot be had."""
        certificate = Certificate(self._settings.certificates)
        await certificate.wait()
        runner = web.AppRunner(self.app(), access_log=None, shutdown_timeout=STOP_SECONDS)
        await runner.setup()
        try:
            await web.TCPSite(runner, None, self._settings.port, ssl_context=certificate.context).start()
            log.info("webhook serves", port=self._settings.port)
            await certificate.follow()
        except OSError as error:
            raise UsageError(f"--webhook-port {self._settings.port}: {error.strerror or error}") from error
        finally:
            await runner.cleanup()

    def app(self) -> web.Application:
        """What is served."""
        app = web.Application(client_max_size=MOST_BYTES)
        app.router.add_post("/validate", self._validate)
        app.router.add_get("/ready", self._ready)
        return app

    async def _ready(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self._store.complete else 503)

    async def _validate(self, request: web.Request) -> web.Response:
        try:
            asked = (await request.json())["request"]
            uid, operation = asked["uid"], asked["operation"]
        except (ValueError, KeyError, TypeError):
            raise web.HTTPBadRequest(text="not an AdmissionReview of admission.k8s.io/v1") from None
        told = await self._told(asked) if operation in ("CREATE", "UPDATE") else Review()
        response: dict[str, Any] = {"uid": uid, "allowed": told.allowed}
        if told.refusals:
            response["status"] = {"code": 422, "reason": "Invalid", "message": "; ".join(told.refusals)}
        if told.warnings:
            response["warnings"] = list(told.warnings)
        return web.json_response({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})

    async def _told(self, asked: Mapping[str, Any]) -> Review:
        kind = str((asked.get("kind") or {}).get("kind", ""))
        try:
            told = await self._reviewed(asked)
        except Exception:  # an object that we cannot judge must not be one that nobody can store
            log.exception("a review failed; the object is let through", kind=kind, name=asked.get("name"))
            REVIEWS.labels(kind, "failed").inc()
            return Review(warnings=("lorafleet's operator could not check this object; its log says why",))
        REVIEWS.labels(kind, "refused" if told.refusals else "warned" if told.warnings else "allowed").inc()
        return told

    async def _reviewed(self, asked: Mapping[str, Any]) -> Review:
        document, old = asked["object"], asked.get("oldObject")
        metadata = document["metadata"]
        elsewhere = bool(self._namespaces and asked.get("namespace") and asked["namespace"] not in self._namespaces)
        if elsewhere or asked.get("subResource") or metadata.get("deletionTimestamp"):
            return Review()
        told = review(self._store.desired(), document, old)
        now = time.monotonic()
        if all(self._lasting.get(sentence, 0.0) > now for sentence in _sentences(asked, told)):
            return told
        await asyncio.sleep(BEHIND_SECONDS)
        told = review(self._store.desired(), document, old)
        self._lasting = {sentence: until for sentence, until in self._lasting.items() if until > now}
        self._lasting |= dict.fromkeys(_sentences(asked, told), now + LASTING_SECONDS)
        return told


def _sentences(asked: Mapping[str, Any], told: Review) -> list[str]:
    """What was said, without the object's own name: of many objects it is the same."""
    kind, namespace, name = asked["kind"]["kind"], asked.get("namespace"), asked["object"]["metadata"]["name"]
    own = f"{kind} {namespace + '/' if namespace else ''}{name}: "
    return [said.removeprefix(own) for said in (*told.refusals, *told.warnings)]
