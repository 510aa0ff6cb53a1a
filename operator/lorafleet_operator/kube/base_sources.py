"""From a base model's source to its identity, in a cluster: its weights are on a volume, or in the runtime's image."""

from __future__ import annotations

import hashlib

from lorafleet_operator.core.objects import Artifact, BaseModel, Unresolved


def declared_base(base: BaseModel) -> Artifact | Unresolved:
    """In a cluster the pods read the weights themselves, so their identity is what is declared about them."""
    source = base.source
    scheme = source.uri.partition(":")[0]
    if scheme not in ("pvc", "file", "package"):
        return Unresolved(
            "UnsupportedSource",
            f"{source.uri}: base models are read from volumes (pvc://VOLUME/PATH, see .spec.runtime.artifactVolumes) "
            "or from the runtime's image (package:// or file:)",
        )
    volume = source.uri.removeprefix("pvc://").split("/")[0]
    if scheme == "pvc" and volume not in {v["name"] for v in base.runtime.get("artifactVolumes", ())}:
        return Unresolved("VolumeNotDeclared", f"{source.uri}: .spec.runtime.artifactVolumes has no volume {volume!r}")
    declared = f"{source.uri} {source.revision or ''} {source.sha256 or ''}"
    return Artifact("sha256:" + hashlib.sha256(declared.encode()).hexdigest())
