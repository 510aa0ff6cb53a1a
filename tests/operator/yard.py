"""A whole fleet in a test's folder: its YAML, its world, and what it publishes."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorafleet_operator.config import Settings
from lorafleet_operator.folder import Folder
from lorafleet_operator.local.state_folder import StateFolder
from lorafleet_operator.local.world import LocalWorld
from tests.operator import fleet_kit as kit

FLEET = """
apiVersion: lorafleet.dev/v1alpha1
kind: BaseModel
metadata: {name: tiny, namespace: models}
spec: {source: {uri: "file:model.gguf"}, replicas: REPLICAS, allowedNamespaces: {from: All}EXTRA}
---
apiVersion: lorafleet.dev/v1alpha1
kind: Tenant
metadata: {name: acme}
spec:
  namespaces: [acme]
  models: [{namespace: models, name: tiny}]
  apiKeys: [{secretRef: {namespace: acme, name: acme-key, key: key}}]
---
apiVersion: v1
kind: Secret
metadata: {name: acme-key, namespace: acme}
stringData: {key: sk-acme-demo}
"""


def lora(name: str, extra: str = "") -> str:
    return f"""
apiVersion: lorafleet.dev/v1alpha1
kind: LoRAAdapter
metadata: {{name: {name}, namespace: acme}}
spec: {{baseModelRef: {{namespace: models, name: tiny}}, source: {{uri: "file:{name}"}}{extra}}}
"""


@dataclass(slots=True)
class Yard:
    """One fleet in a test's folder."""

    root: Path
    port: int
    world: LocalWorld = field(init=False)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    running: asyncio.Task[None] = field(init=False)

    def write(self, *, replicas: int = 1, extra: str = "", name: str = "fleet.yaml") -> None:
        (self.root / name).write_text(FLEET.replace("REPLICAS", str(replicas)).replace("EXTRA", extra))

    def adapter(self, name: str, *, extra: str = "", fake: str = "") -> None:
        kit.write_adapter(self.root / name, fake=fake)
        (self.root / f"{name}.yaml").write_text(lora(name, extra))

    def up(self) -> None:
        kit.write_base(self.root)
        settings = Settings(
            (self.root,), self.root / "state", port=self.port,
            runtime_command=kit.FAKE_RUNTIME, gateway_command=kit.FAKE_RUNTIME,
            scan_seconds=0.1, poll_seconds=0.05, resync_seconds=0.5, drain_seconds=0.5,
            usage_seconds=0.1,
        )  # fmt: skip
        folder = Folder(settings.paths)
        folder.scan()
        state = StateFolder(settings.state_dir)
        state.fleet.mkdir(parents=True, exist_ok=True)
        self.world = LocalWorld(settings, folder, state)
        self.running = asyncio.create_task(self.world.run(self.stop))

    async def serving(self, *adapters: str) -> None:
        """Until the gateway, a replica and just these adapters are up."""
        await kit.until(
            lambda: (
                self.world.gateway.ready and self.replicas_up() != set() and sorted(adapters) == self.ready_adapters()
            )
        )

    def replicas_up(self) -> set[str]:
        """The replicas that the published fleet document calls Ready."""
        return {replica["name"] for replica in self.document().get("replicas", ()) if replica["state"] == "Ready"}

    def ready_adapters(self) -> list[str]:
        """The adapters that the published fleet document calls Ready on a Ready replica."""
        up = self.replicas_up()
        return sorted(
            adapter["name"]
            for adapter in self.document().get("adapters", ())
            if any(p["state"] == "Ready" and p["replica"] in up for p in adapter["placements"])
        )

    def document(self, name: str = "models.tiny") -> dict[str, Any]:
        path = self.root / "state" / "fleet" / f"{name}.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def status(self, kind: str, name: str) -> dict[str, Any]:
        """Its conditions by type."""
        return {condition["type"]: condition for condition in self.whole_status(kind, name)["conditions"]}

    def whole_status(self, kind: str, name: str) -> dict[str, Any]:
        objects = json.loads((self.root / "state" / "status.json").read_text())["objects"]
        found = next(o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, name))
        return dict(found["status"])

    async def down(self) -> None:
        self.stop.set()
        await self.running
