"""`lorafleet demo`: brings the fleet up, asks every model the same questions, prints the answers side by side."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import httpx
from rich.table import Table

from lorafleet_operator.cli.plan import opened
from lorafleet_operator.cli.terminal import console
from lorafleet_operator.cli.up import from_options, until_settled
from lorafleet_operator.config import Settings
from lorafleet_operator.core.objects import Desired
from lorafleet_operator.core.tenant_keys import key_material
from lorafleet_operator.errors import FleetFailed
from lorafleet_operator.folder import Folder
from lorafleet_operator.local.progress import Item
from lorafleet_operator.local.session import Session, fleet

ANNOTATION = "lorafleet.dev/demo-prompts"
PROMPTS = ("Who are you, and what do you like to do?", "Give me one piece of advice for a rainy day.")
ANSWER_SECONDS = 300.0


def run(options: argparse.Namespace) -> int:
    """Print a table of answers; 0 when every model that was declared has answered. Raises LorafleetError."""
    chosen = from_options(options)
    return asyncio.run(_demo(chosen, opened(chosen), options.max_tokens))


async def _demo(chosen: Settings, folder: Folder, max_tokens: int) -> int:
    out = console()
    for problem in folder.news():
        print(f"problem: {problem}", file=sys.stderr)
    async with fleet(chosen, folder) as session:
        await until_settled(session, out)
        if session.over:
            return 130
        failed = [item for item in session.items() if item.stage == "failed"]
        callers = models_of(session.world.last[0], session.items())
        if not callers:
            why = "".join(f"\n  {item.kind} {item.name}: {item.message}" for item in failed)
            raise FleetFailed(f"no tenant can call any model{':' + why if why else ': declare a Tenant with a key'}")
        prompts = prompts_of(folder.documents())
        async with httpx.AsyncClient(base_url=chosen.gateway_url, timeout=ANSWER_SECONDS, trust_env=False) as client:
            table, complete = await _answers(client, session, callers, prompts, max_tokens)
        out.print(table)
    return 0 if complete and not failed else 1


def prompts_of(documents: Iterable[Any]) -> tuple[str, ...]:
    """The lines of the annotation on the first BaseModel that has it, or our own."""
    for document in documents:
        if isinstance(document, Mapping) and document.get("kind") == "BaseModel":
            annotations = (document.get("metadata") or {}).get("annotations") or {}
            lines = tuple(line.strip() for line in str(annotations.get(ANNOTATION) or "").splitlines() if line.strip())
            if lines:
                return lines
    return PROMPTS


def models_of(desired: Desired, items: Iterable[Item]) -> dict[str, tuple[str, bytes]]:
    """Who to ask as whom: column title -> (model, key). Base models once each, then every adapter that is ready."""
    ready = {(item.kind, item.name): item.served_name for item in items if item.stage == "ready"}
    bases: dict[str, tuple[str, bytes]] = {}
    adapters: dict[str, tuple[str, bytes]] = {}
    for _, tenant in sorted(desired.tenants.items()):
        key = next((k for ref in tenant.api_keys if (k := key_material(desired, ref))), None)
        if key is None:
            continue
        for ref in tenant.models:
            if served := ready.get(("BaseModel", str(ref))):
                bases.setdefault(f"{served}\n(base model)", (served, key))
        for ref in sorted(desired.adapters):
            served = ready.get(("LoRAAdapter", str(ref)))
            if served and ref.namespace in tenant.namespaces:
                adapters.setdefault(f"{served}\n({tenant.name})", (served, key))
    return {**bases, **adapters}


async def _answers(
    client: httpx.AsyncClient, session: Session, callers: Mapping[str, tuple[str, bytes]], prompts: tuple[str, ...],
    max_tokens: int,
) -> tuple[Table, bool]:  # fmt: skip
    table = Table("prompt", *callers, show_lines=True)
    complete = True
    for prompt in prompts:
        asked = [asyncio.create_task(_ask(client, model, key, prompt, max_tokens)) for model, key in callers.values()]
        stopped = asyncio.create_task(session.stop.wait())
        await asyncio.wait([stopped, asyncio.ensure_future(asyncio.wait(asked))], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        for task in asked:
            task.cancel()  # of no effect on an answer that is there
        found = await asyncio.gather(*asked, return_exceptions=True)
        answers = [answer if isinstance(answer, str) else f"[no answer: {answer}]" for answer in found]
        complete = complete and all(isinstance(answer, str) for answer in found)
        table.add_row(*(text.replace("[", "\\[") for text in (prompt, *answers)))
    return table, complete


async def _ask(client: httpx.AsyncClient, model: str, key: bytes, prompt: str, max_tokens: int) -> str:
    """One answer, at temperature 0 so that the models differ and not the dice."""
    body = {
        "model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, "temperature": 0,
    }  # fmt: skip
    headers = {"Authorization": f"Bearer {key.decode()}"}
    response = await client.post("/v1/chat/completions", json=body, headers=headers)
    if response.is_error:
        raise FleetFailed(f"HTTP {response.status_code}: {response.text[:200]}")
    return str(response.json()["choices"][0]["message"]["content"]).strip()
