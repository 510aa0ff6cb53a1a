"""Runs in a client's pod, with the `openai` package, against the gateway's Service by its name.

asking.py stream MODEL TOKENS     one streamed answer: a JSON line for each piece, the last with the reason of its end
asking.py load MODEL...           short answers, streamed and whole in turn, until standard input ends; then counts
"""

import itertools
import json
import os
import sys
import threading
import time

import openai
from openai.types.chat import ChatCompletionMessageParam

URL = "http://lorafleet-gateway.lorafleet-system/v1"


def client() -> openai.OpenAI:
    # No retries: whatever a client would have to repeat is a failure here.
    return openai.OpenAI(base_url=URL, api_key=os.environ["API_KEY"], max_retries=0, timeout=120)


def stream(model: str, tokens: int) -> None:
    chunks = client().chat.completions.create(
        model=model, max_tokens=tokens, temperature=0, stream=True, extra_body={"ignore_eos": True},
        messages=[{"role": "user", "content": "Tell me a long story about the sea."}],
    )  # fmt: skip
    for chunk in chunks:
        choice = chunk.choices[0]
        say(text=choice.delta.content or "", end=choice.finish_reason)


def load(models: list[str]) -> None:
    stop = threading.Event()
    threading.Thread(target=watch, args=(stop,), daemon=True).start()
    done, failures = 0, []
    for model, streamed in itertools.cycle([(model, streamed) for model in models for streamed in (True, False)]):
        if stop.is_set():
            break
        begun = time.strftime("%H:%M:%S")
        try:
            ask(model, streamed)
            done += 1
        except Exception as error:
            failures.append(f"{begun} {model}: {type(error).__name__}: {error}")
            time.sleep(0.2)
    say(done=done, failures=failures)


def ask(model: str, streamed: bool) -> None:
    """One short answer, over a connection of its own: the Service chooses a gateway each time."""
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello!"}]
    with client() as once:
        if not streamed:
            once.chat.completions.create(model=model, max_tokens=8, messages=messages)
            return
        chunks = once.chat.completions.create(model=model, max_tokens=8, messages=messages, stream=True)
        if not [chunk for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]:
            raise RuntimeError("the stream has no end")


def watch(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


if sys.argv[1] == "stream":
    stream(sys.argv[2], int(sys.argv[3]))
else:
    load(sys.argv[2:])
