"""From a base model's source to its artifact, in a cluster: what pods see themselves is declared, the rest is found."""

from __future__ import annotations

import hashlib

from lorafleet_operator.artifact_sources.artifact_finder import ArtifactFinder
from lorafleet_operator.core.objects import Artifact, BaseModel, Unresolved
from lorafleet_operator.core.runtime_arguments import IN_PODS


class BaseSources:
    """Weights on a volume or in the runtime's image are the pods' to read; those at a server are found by `finder`."""

    def __init__(self, finder: ArtifactFinder) -> None:
        self._finder = finder

    def base(self, base: BaseModel) -> Artifact | Unresolved | None:
        """The artifact of a base model's source, or why there is none; None: not known yet."""
        if base.source.uri.partition(":")[0] in IN_PODS:
            return declared_base(base)
        return self._finder.base(base)


def declared_base(base: BaseModel) -> Artifact | Unresolved:
    """The pods read the weights themselves, so their identity is what is declared about them."""
    source = base.source
    volume = source.uri.removeprefix("pvc://").split("/")[0]
    volumes = {v["name"] for v in base.runtime.get("artifactVolumes", ())}
    if source.uri.startswith("pvc:") and volume not in volumes:
        return Unresolved("VolumeNotDeclared", f"{source.uri}: .spec.runtime.artifactVolumes has no volume {volume!r}")
    declared = f"{source.uri} {source.revision or ''} {source.sha256 or ''}"
    return Artifact("sha256:" + hashlib.sha256(declared.encode()).hexdigest())
