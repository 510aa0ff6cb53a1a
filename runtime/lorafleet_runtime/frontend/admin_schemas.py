"""The bodies of the admin port's calls."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FileBody(BaseModel):
    """One file of an artifact, by reference."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=128)
    url: str = Field(min_length=1, max_length=8192)
    sha256: Digest
    size: int = Field(ge=0)


class AdapterBody(BaseModel):
    """`PUT /admin/adapters/{id}`."""

    model_config = ConfigDict(extra="forbid")
    revision: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    files: list[FileBody] = Field(min_length=1, max_length=64)
    pinned: bool = False


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
