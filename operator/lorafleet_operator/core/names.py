"""Names and sources: the patterns and readers that several kinds share, equal to the CRDs'."""

from __future__ import annotations

import re

from lorafleet_operator.core.fields import Fields
from lorafleet_operator.core.objects import SecretKeyRef, Source

DNS_LABEL = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
DNS_LABEL_SAYS = "lower-case letters, digits and inner dashes"
DNS_NAME = rf"{DNS_LABEL}(\.{DNS_LABEL})*"
DNS_NAME_SAYS = "lower-case letters, digits, and inner dashes and dots"
SERVED_NAME = r"[A-Za-z0-9]([A-Za-z0-9._:/-]*[A-Za-z0-9])?"
SERVED_NAME_SAYS = "letters, digits and inner . _ : / - (it is what clients put into `model`)"
SECRET_KEY = r"[A-Za-z0-9._-]+"
SECRET_KEY_SAYS = "letters, digits, . _ and -"
REVISION = r"[A-Za-z0-9][A-Za-z0-9._/:@-]*"
SHA256 = r"(sha256:)?[a-f0-9]{64}"

SCHEMES = ("hf://", "s3://", "oci://", "https://", "pvc://", "package://", "file:")
_URI = re.compile(r"((hf|s3|oci|https|pvc|package)://|file:).+", re.DOTALL)
_PICKLE = re.compile(r"\.(bin|pt|pth|pkl|pickle|ckpt)$")
_CREDENTIALS = re.compile(r"^[a-z0-9]+://[^/@]*@")


def read_name(fields: Fields, *, required: bool = True, most: int = 253) -> str:
    """A Kubernetes object's `name`."""
    return fields.text("name", required=required, most=most, pattern=DNS_NAME, expected=DNS_NAME_SAYS) or ""


def read_namespace(fields: Fields, default: str = "", *, required: bool = False) -> str:
    """A `namespace`, or `default`."""
    read = fields.text("namespace", required=required, most=63, pattern=DNS_LABEL, expected=DNS_LABEL_SAYS)
    return read or default


def read_served_name(spec: Fields, default: str) -> str:
    """`servedName`, or the object's own name."""
    read = spec.text("servedName", most=128, pattern=SERVED_NAME, expected=SERVED_NAME_SAYS)
    return read or default


def read_source(spec: Fields, namespace: str, base_dir: str) -> Source:
    """`source {uri, revision, sha256, secretRef}`; the Secret is the object's own namespace's."""
    fields = spec.section("source", required=True)
    uri = fields.text("uri", required=spec.has("source"), most=1024) or ""
    if uri:
        _check_uri(fields, uri)
    revision = fields.text("revision", most=256, pattern=REVISION, expected="a branch, tag, commit or digest")
    sha256 = fields.text("sha256", most=71, pattern=SHA256, expected="64 lower-case hex digits")
    secret = None
    if fields.has("secretRef"):
        ref = fields.section("secretRef")
        name = read_name(ref)
        secret = SecretKeyRef(namespace, name, read_secret_key(ref, "token"))
        ref.close()
    else:
        fields.take("secretRef")
    fields.close()
    return Source(uri, revision, sha256.removeprefix("sha256:") if sha256 else None, secret, base_dir)


def read_secret_key(ref: Fields, default: str) -> str:
    """`key` of a Secret."""
    return ref.text("key", most=253, pattern=SECRET_KEY, expected=SECRET_KEY_SAYS) or default


def _check_uri(fields: Fields, uri: str) -> None:
    """The rules of the CRDs' `uri`, in their words."""
    if not _URI.fullmatch(uri):
        fields.wrong("uri", f"must start with one of {', '.join(SCHEMES)}, not {uri!r}")
    if _PICKLE.search(uri):
        fields.wrong("uri", "pickle files run code when they are loaded: convert to safetensors")
    if _CREDENTIALS.search(uri):
        fields.wrong("uri", "must not hold credentials: put them into a Secret and name it in secretRef")
