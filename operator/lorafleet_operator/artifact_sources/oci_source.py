"""`oci://HOST/REPOSITORY[:TAG][@DIGEST]`: an artifact in a registry, each file a layer of its name, as ORAS pushes it.

Sizes and digests are the manifest's, so the operator reads no layer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lorafleet_operator.artifact_sources.oci_registry import OciRegistry, Repository
from lorafleet_operator.artifact_sources.source import SERVER_SECONDS, Wanted, refuse_field
from lorafleet_operator.core.objects import ArtifactFile, Secret, Source
from lorafleet_operator.errors import SourceError

TITLE = "org.opencontainers.image.title"
UNPACK = "io.deis.oras.content.unpack"
URI = re.compile(
    r"oci://(?P<host>[A-Za-z0-9.-]+(?::[0-9]+)?)/(?P<path>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
PUSH = "push the files: oras push HOST/REPOSITORY:TAG adapter_config.json adapter_model.safetensors"


class OciSource:
    """A round costs one manifest; a load, one request per file and now and then a token."""

    fresh_seconds = SERVER_SECONDS

    def __init__(self, registry: OciRegistry) -> None:
        self._registry = registry

    def find(self, wanted: Wanted, secret: Secret | None) -> tuple[ArtifactFile, ...]:
        source = wanted.source
        repository, reference = _reference(source)
        body, media_type = self._registry.manifest(repository, reference, secret)
        files = _files(wanted, repository, _manifest(source.uri, body, media_type))
        if secret is not None:
            self.link(files[0], source, secret)  # if its files cannot be handed on, it is said now and not at a load
        return files

    def link(self, file: ArtifactFile, source: Source, secret: Secret | None) -> ArtifactFile:
        match = URI.fullmatch(file.url)
        assert match is not None, file.url  # `find` made it
        repository = Repository(match["host"], match["path"])
        url, authorization = self._registry.link(repository, match["digest"], secret)
        return replace(file, url=url, authorization=authorization)


def _reference(source: Source) -> tuple[Repository, str]:
    """The repository, and the digest or tag in it: the URI's, or `revision`."""
    match = URI.fullmatch(source.uri)
    if match is None:
        raise SourceError(
            "UnsupportedSource", f"{source.uri}: write oci://HOST/REPOSITORY:TAG or oci://HOST/REPOSITORY@sha256:DIGEST"
        )
    named = match["digest"] or match["tag"]
    if named and source.revision and source.revision not in (match["digest"], match["tag"]):
        raise refuse_field(source, "revision", f"the URI names {named} already: leave one of them out")
    return Repository(match["host"], match["path"]), named or source.revision or "latest"


def _manifest(uri: str, body: bytes, media_type: str) -> Mapping[str, Any]:
    try:
        manifest = json.loads(body)
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict):
        raise SourceError("NotAnArtifact", f"{uri}: the registry sent no manifest but {media_type or 'something else'}")
    if "manifests" in manifest:
        raise SourceError("NotAnArtifact", f"{uri} is an index of manifests: name one of them by its digest")
    if not isinstance(manifest.get("layers"), list):
        raise SourceError("NotAnArtifact", f"{uri}: its manifest has no layers: {PUSH}")
    return manifest


def _files(wanted: Wanted, repository: Repository, manifest: Mapping[str, Any]) -> tuple[ArtifactFile, ...]:
    """The layers that are the files looked for, by the last part of their titles."""
    layers = [layer for layer in manifest["layers"] if isinstance(layer, dict)]
    titled = [(str((layer.get("annotations") or {}).get(TITLE, "")).rpartition("/")[2], layer) for layer in layers]
    names = [name for name, _ in titled if name]
    ggufs = [name for name in names if name.endswith(".gguf")]
    single = ggufs[0] if wanted.kind == "base" and len(ggufs) == 1 else ""
    try:
        chosen = wanted.chosen(names, single)
    except SourceError:
        if any(_archive(layer) for layer in layers):
            raise SourceError(
                "NotAnArtifact", f"{wanted.uri} holds an archive, which is not unpacked: {PUSH}"
            ) from None
        raise
    twice = [name for name in chosen if names.count(name) > 1]
    if twice:
        raise SourceError("NotAnArtifact", f"{wanted.uri} has {names.count(twice[0])} layers called {twice[0]}: {PUSH}")
    by_name = dict(titled)
    return tuple(_file(wanted.uri, repository, name, by_name[name]) for name in chosen)


def _archive(layer: Mapping[str, Any]) -> bool:
    kind = str(layer.get("mediaType", ""))
    return kind.endswith(("tar", "tar+gzip", "tar.gzip", "tar+zstd")) or UNPACK in (layer.get("annotations") or {})


def _file(uri: str, repository: Repository, name: str, layer: Mapping[str, Any]) -> ArtifactFile:
    digest, size = DIGEST.fullmatch(str(layer.get("digest"))), layer.get("size")
    if digest is None or not isinstance(size, int) or size < 0:
        raise SourceError("NotAnArtifact", f"{uri}: layer {name} has no sha256 digest or no size in the manifest")
    return ArtifactFile(name, f"{repository}@{digest[0]}", digest[1], size)
