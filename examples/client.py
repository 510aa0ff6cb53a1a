"""Asks every model of every tenant the same question at once, with the `openai` package, and shows the answers live.

    lorafleet up -f examples/quickstart                         # in another terminal
    python examples/client.py "Why is the sky blue?"

All the streams run in one batch of one base model; the seconds in each title show what that costs.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from openai import APIError, AsyncOpenAI
from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

DEMO_KEYS = ("acme=sk-acme-demo", "globex=sk-globex-demo")  # of examples/quickstart/tenants.yaml
NARROWEST = 30


@dataclass(slots=True)
class Answer:
    """One stream, as far as it has come."""

    tenant: str
    model: str
    client: AsyncOpenAI
    text: str = ""
    tokens: int = 0
    first: float | None = None  # seconds to the first token
    seconds: float = 0.0
    error: str = ""

    @property
    def title(self) -> str:
        """Whose model it is."""
        return f"{self.model} ({self.tenant})"

    @property
    def timing(self) -> str:
        """The two figures that users feel: seconds to the first token, and the pace of the others."""
        if self.first is None:
            return "waiting"
        pace = (self.tokens - 1) / (self.seconds - self.first) if self.tokens > 1 else 0.0
        return f"{self.first:.2f} s, then {pace:.1f} tok/s"


async def find_models(clients: dict[str, AsyncOpenAI]) -> list[Answer]:
    """What `/v1/models` shows to each tenant. A base model that several tenants may call is asked once."""
    found: dict[tuple[str, str], Answer] = {}
    for tenant, client in clients.items():
        async for model in client.models.list():
            # `parent` is not among OpenAI's fields: an adapter's names its base model, a base model has none.
            base = (model.model_extra or {}).get("parent") is None
            found.setdefault(("" if base else tenant, model.id), Answer(tenant, model.id, client))
    return [found[key] for key in sorted(found)]


async def ask(answer: Answer, question: str, max_tokens: int) -> None:
    """Stream one answer into `answer`; what goes wrong lands there too, beside the other answers."""
    started = time.perf_counter()
    try:
        stream = await answer.client.chat.completions.create(
            model=answer.model,
            messages=[{"role": "user", "content": question}],
            max_tokens=max_tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in stream:
            answer.seconds = time.perf_counter() - started
            if chunk.choices and (piece := chunk.choices[0].delta.content):
                answer.first = answer.first or answer.seconds
                answer.text += piece
                answer.tokens += 1
            if chunk.usage:
                answer.tokens = chunk.usage.completion_tokens
    except APIError as error:  # refused, unreachable, or broken off in mid-stream
        answer.error = str(error)


def side_by_side(answers: Sequence[Answer], width: int) -> Columns:
    """A panel for each model, as many beside each other as the terminal holds."""
    fit = max(1, min(len(answers), width // NARROWEST))
    panels = []
    for answer in answers:
        body = Text(answer.text.strip())
        body.append(f"\n{answer.error}" if answer.error else "", style="red")
        panels.append(Panel(body, title=answer.title, subtitle=answer.timing, width=width // fit - 1))
    return Columns(panels, padding=(0, 1, 0, 0))


async def answer_all(answers: Sequence[Answer], question: str, max_tokens: int) -> None:
    """All at once; on a terminal the panels fill as tokens arrive, elsewhere the answers are printed at the end."""
    console = Console()
    everything = asyncio.gather(*(ask(answer, question, max_tokens) for answer in answers))
    if not console.is_terminal:
        await everything
        for answer in answers:
            print(f"\n--- {answer.title}: {answer.timing}\n{answer.text.strip()}")
            if answer.error:
                print(answer.error)
        return
    with Live(side_by_side(answers, console.width), console=console, auto_refresh=False) as live:
        while not everything.done():
            await asyncio.wait([everything], timeout=0.1)
            live.update(side_by_side(answers, console.width), refresh=True)
    await everything


async def run(options: argparse.Namespace) -> int:
    """Ask, show, and return 1 when a model gave no answer."""
    clients = {
        tenant: AsyncOpenAI(base_url=f"{options.url.rstrip('/')}/v1", api_key=key)
        for tenant, _, key in (item.partition("=") for item in options.key or DEMO_KEYS)
    }
    try:
        answers = await find_models(clients)
        print(f"{len(answers)} models, one question: {options.question}")
        await answer_all(answers, options.question, options.max_tokens)
    except APIError as error:
        print(f"{options.url}: {error} Does the fleet run? lorafleet up -f examples/quickstart", file=sys.stderr)
        return 1
    finally:
        for client in clients.values():
            await client.close()
    return 1 if not answers or any(answer.error for answer in answers) else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description="Ask the base model and every adapter the same question at once.")
    parser.add_argument("question", nargs="?", default="Why is the sky blue?")
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="the gateway (default: %(default)s)")
    parser.add_argument("--key", action="append", metavar="TENANT=KEY", help="default: both keys of the quickstart")
    parser.add_argument("--max-tokens", type=int, default=80)
    return asyncio.run(run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
