"""`pvc://VOLUME/PATH`: a folder of a volume that the base model mounts. Only its replicas see it, so one is asked.

`file:/artifacts/VOLUME/PATH` is the same place by the path that it has there.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from lorafleet_operator.artifact_sources.source import Wanted, refuse_field
from lorafleet_operator.core.objects import ArtifactFile, Ref, Secret, Source
from lorafleet_operator.errors import SourceError

Files = tuple[ArtifactFile, ...]
PVC = re.compile(r"pvc://(?P<volume>[a-z0-9-]+)/(?P<path>.+)")
FILE = re.compile(r"file:(?://(?:localhost)?)?/artifacts/(?P<volume>[a-z0-9-]+)/(?P<path>.+)")


class VolumeSource:
    """`describe` asks a replica of a base model about VOLUME/PATH. It blocks, answers None while that is not known yet
    or nobody can be asked, and raises SourceError."""

    fresh_seconds = 10.0  # a replica reads only what changed, and a change shows with the next round

    def __init__(self, describe: Callable[[Ref, str], Files | None]) -> None:
        self._describe = describe

    def find(self, wanted: Wanted, secret: Secret | None) -> Files | None:
        source = wanted.source
        for field, value in (("secretRef", source.secret), ("revision", source.revision)):
            if value is not None:
                raise refuse_field(source, field, "says nothing about a volume: leave it out")
        return self._describe(wanted.base, _place(source.uri))

    def link(self, file: ArtifactFile, source: Source, secret: Secret | None) -> ArtifactFile:
        return file


def _place(uri: str) -> str:
    match = PVC.fullmatch(uri) or FILE.fullmatch(uri)
    if match is not None:
        return f"{match['volume']}/{match['path'].strip('/')}"
    if uri.startswith("pvc:"):
        raise SourceError("UnsupportedSource", f"{uri}: write pvc://VOLUME/PATH")
    raise SourceError(
        "UnsupportedSource",
        f"{uri}: pods do not see this path: write pvc://VOLUME/PATH, for a volume of the base model's "
        ".spec.runtime.artifactVolumes (or file:/artifacts/VOLUME/PATH, where its replicas have it)",
    )
