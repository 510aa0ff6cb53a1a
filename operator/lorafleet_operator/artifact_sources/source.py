"""What every kind of source does: find an artifact's files, and give links to them that work for minutes."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from lorafleet_operator.core.objects import ArtifactFile, Ref, Secret, Source
from lorafleet_operator.errors import SourceError
from lorafleet_operator.sources import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PICKLE_SUFFIXES, base_file_names

ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
SERVER_SECONDS = 60.0
LINK_SECONDS = 900
"""How long a link works that is made here: a load has begun by then, and what is being read is read to its end."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is looked for at a source. `base` is the base model, whose replicas alone see its volumes."""

    kind: Literal["adapter", "base"]
    source: Source
    base: Ref

    @property
    def uri(self) -> str:
        return self.source.uri

    def split(self, path: str) -> tuple[str, str]:
        """The folder that a path names, and the one file in it that counts: "" unless a base model is a GGUF file."""
        folder, _, name = path.strip("/").rpartition("/")
        single = self.kind == "base" and name.endswith(".gguf")
        return (folder, name) if single else (path.strip("/"), "")

    def chosen(self, names: Collection[str], single: str = "") -> list[str]:
        """Of a folder that holds `names`, the files that count. Raises SourceError when it lacks some."""
        if single:
            if single not in names:
                raise SourceError("NotFound", f"{self.uri} does not exist")
            return [single]
        if self.kind == "base":
            return base_file_names(self.uri, names)
        missing = [name for name in ADAPTER_FILES if name not in names]
        if missing:
            raise incomplete(self.uri, names, missing)
        return list(ADAPTER_FILES)


class ArtifactSource(Protocol):
    """One URI scheme. Blocks; raises SourceError; thread safe. `secret` is what `secretRef` names, None without one."""

    fresh_seconds: float
    """For so long what was found counts, so that a change of one object asks nobody about all the others."""

    def find(self, wanted: Wanted, secret: Secret | None) -> tuple[ArtifactFile, ...] | None:
        """Its files with sizes and digests; None: not known yet. Their URLs name them, and open nothing."""
        ...

    def link(self, file: ArtifactFile, source: Source, secret: Secret | None) -> ArtifactFile:
        """A file that `find` returned for `source`, behind a URL that a runtime can fetch now.

        No credential that lives longer than minutes is in it.
        """
        ...


def secret_text(secret: Secret | None, *keys: str) -> str:
    """The value under the first of `keys` that the Secret has; "" when it has none of them. Raises SourceError."""
    for key in keys:
        value = secret.data.get(key) if secret is not None else None
        if secret is not None and value:
            try:
                return value.decode().strip()
            except UnicodeDecodeError:
                raise SourceError("SecretInvalid", f"Secret {secret.ref}: {key} is not text") from None
    return ""


def refuse_field(source: Source, field: str, why: str) -> SourceError:
    """For a field that means nothing at this kind of source: it is refused, never ignored."""
    return SourceError("UnsupportedSource", f"{source.uri}: .spec.source.{field}: {why}")


def incomplete(uri: str, names: Iterable[str], missing: Iterable[str]) -> SourceError:
    """Why a folder that holds `names` is no adapter: it lacks files, or has pickles in their place."""
    pickles = sorted(name for name in names if name.lower().endswith(PICKLE_SUFFIXES))
    lacks = " and ".join(missing)
    if ADAPTER_WEIGHTS in lacks and pickles:
        return SourceError(
            "PickleRefused",
            f"{uri} holds {pickles[0]}, a pickle, and loading a pickle runs whatever code is in it: save the adapter "
            "as safetensors, with model.save_pretrained(FOLDER, safe_serialization=True)",
        )
    return SourceError("NotFound", f"{uri} lacks {lacks}: a PEFT adapter has both")
