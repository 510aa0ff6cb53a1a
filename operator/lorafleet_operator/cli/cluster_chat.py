"""`kubectl lorafleet chat`: a conversation with a model, through a port-forward to the gateway."""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx

from lorafleet_operator.cli.operator import configuration
from lorafleet_operator.errors import LorafleetError, UsageError
from lorafleet_operator.kube.client import KubeClient

ANSWER_SECONDS = 300.0
FORWARDED = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+)")


def run(options: argparse.Namespace) -> int:
    """One answer, or a conversation until end of input. Raises LorafleetError."""
    key = options.key or os.environ.get("LORAFLEET_API_KEY") or ""
    if not key and options.tenant:
        key = asyncio.run(_tenants_key(options.kubeconfig, options.tenant))
    if not key:
        raise UsageError("whose client are you? Give --tenant NAME, or --key, or set LORAFLEET_API_KEY")
    with contextlib.ExitStack() as stack:
        url = options.gateway or stack.enter_context(_forwarded(options))
        headers = {"Authorization": f"Bearer {key}"}
        http = stack.enter_context(httpx.Client(base_url=url, headers=headers, timeout=ANSWER_SECONDS, trust_env=False))
        messages: list[dict[str, str]] = []
        if options.message is not None:
            _answer(http, options, messages, options.message)
            return 0
        with contextlib.suppress(EOFError):
            while True:
                _answer(http, options, messages, input(f"{options.model}> "))
    return 0


def _answer(http: httpx.Client, options: argparse.Namespace, messages: list[dict[str, str]], said: str) -> None:
    """Print the answer as it comes, and remember both sides."""
    if not said.strip():
        return
    messages.append({"role": "user", "content": said})
    body = {"model": options.model, "messages": messages, "max_tokens": options.max_tokens, "stream": True}
    parts: list[str] = []
    try:
        with http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.is_error:
                response.read()
                raise LorafleetError(_message(response))
            for line in response.iter_lines():
                text = _text(line)
                parts.append(text)
                print(text, end="", flush=True)
    except httpx.HTTPError as error:
        raise LorafleetError(f"the gateway at {http.base_url}: {error or type(error).__name__}") from error
    print()
    messages.append({"role": "assistant", "content": "".join(parts)})


def _text(line: str) -> str:
    data = line.removeprefix("data: ")
    if not data or data == "[DONE]":
        return ""
    event: dict[str, Any] = json.loads(data)
    if "error" in event:
        raise LorafleetError(str(event["error"].get("message") or event["error"]))
    choices = event.get("choices") or ()
    return str(choices[0]["delta"].get("content") or "") if choices else ""


def _message(response: httpx.Response) -> str:
    try:
        return f"{response.json()['error']['message']} (HTTP {response.status_code})"
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}: {response.text[:200]}"


async def _tenants_key(kubeconfig: str | None, tenant: str) -> str:
    client = KubeClient(configuration(kubeconfig))
    try:
        named = (await client.get("Tenant", "", tenant))["spec"].get("apiKeys") or ()
        if not named:
            raise LorafleetError(f"Tenant {tenant} has no key: give it one in .spec.apiKeys")
        ref = named[0]["secretRef"]
        data = (await client.get("Secret", ref["namespace"], ref["name"])).get("data") or {}
    finally:
        client.close()
    if ref["key"] not in data:
        raise LorafleetError(f"Secret {ref['namespace']}/{ref['name']} has no key {ref['key']!r}")
    return base64.b64decode(data[ref["key"]]).decode().strip()


@contextlib.contextmanager
def _forwarded(options: argparse.Namespace) -> Iterator[str]:
    """The gateway's Service at a port of this machine, by kubectl."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise LorafleetError("there is no kubectl on the PATH to forward a port with: give --gateway URL")
    argv = [kubectl, *([f"--kubeconfig={options.kubeconfig}"] if options.kubeconfig else [])]
    argv += ["port-forward", "-n", options.system_namespace, f"service/{options.service}", ":80"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stderr is not None
        found = FORWARDED.search(process.stdout.readline())
        if found is None:
            raise LorafleetError(f"kubectl port-forward: {process.stderr.read().strip() or 'it ended'}")
        yield f"http://127.0.0.1:{found[1]}"
    finally:
        process.terminate()
        process.wait()
