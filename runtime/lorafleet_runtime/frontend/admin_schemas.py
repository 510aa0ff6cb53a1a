"""The bodies of the admin port's calls."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


MAX_URL = 1 << 20
"""Characters: a `data:` URL holds a small file."""


class FileBody(BaseModel):
    """One file of an artifact, by reference. `authorization` is sent as the header of that name to the URL's host."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=128)
    url: str = Field(min_length=1, max_length=MAX_URL, repr=False)
    authorization: str = Field("", max_length=32768, pattern=r"^[\x20-\x7e]*$", repr=False)
    sha256: Digest
    size: int = Field(ge=0)


class AdapterBody(BaseModel):
    """`PUT /admin/adapters/{id}`."""

    model_config = ConfigDict(extra="forbid")
    revision: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    files: list[FileBody] = Field(min_length=1, max_length=64)
    pinned: bool = False


class ModelBody(BaseModel):
    """`PUT /admin/model`."""

    model_config = ConfigDict(extra="forbid")
    revision: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    files: list[FileBody] = Field(min_length=1, max_length=512)


class DescribeBody(BaseModel):
    """`POST /admin/artifacts/describe`: VOLUME/PATH of an adapter's folder."""

    model_config = ConfigDict(extra="forbid")
    path: str = Field(min_length=1, max_length=1024)


class LoadBody(BaseModel):
    """vLLM's; fields beyond these have no meaning here and are refused."""

    model_config = ConfigDict(extra="forbid")
    lora_name: str = ""
    lora_path: str = ""
    load_inplace: bool = False
    base_model_name: str | None = None


class UnloadBody(BaseModel):
    """vLLM's; the name decides."""

    model_config = ConfigDict(extra="forbid")
    lora_name: str = ""
    lora_int_id: int | None = None
