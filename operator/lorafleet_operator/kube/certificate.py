"""A server's certificate in a folder, as a mounted Secret holds it: waited for, and read again when it was renewed."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import structlog

log = structlog.get_logger("certificate")

FILES = ("tls.crt", "tls.key")
LOOK_SECONDS = 2.0


class Certificate:
    """`context` is for the server; what is renewed counts for the next connection, and no connection is cut."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded = b""
        self._told = ""
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2

    async def wait(self) -> None:
        """Until there is one: whoever makes it may be slower than this pod."""
        while not self.look():
            await asyncio.sleep(LOOK_SECONDS)

    async def follow(self) -> None:
        """Read it again whenever it changes, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> bool:
        """Is there a certificate? One that cannot be read leaves the last one in place, and is told once."""
        certificate, key = (self._folder / name for name in FILES)
        try:
            found = certificate.read_bytes() + key.read_bytes()
            if found == self._loaded:
                return True
            self.context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            self._tell(f"{self._folder}: {error}: it must hold tls.crt and tls.key, which belong together")
            return bool(self._loaded)
        log.info("certificate renewed" if self._loaded else "certificate read", folder=str(self._folder))
        self._loaded, self._told = found, ""
        return True

    def _tell(self, why: str) -> None:
        if why != self._told:
            self._told = why
            log.warning("no certificate to read; it is looked for again", why=why)
