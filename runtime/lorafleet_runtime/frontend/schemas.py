"""The requests that clients may send, field by field. Knows no tokens and no engine.

A field is obeyed, or refused by name; nothing is ignored. OpenAI fields that this runtime has no use for are
accepted at the values that change nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lorafleet_runtime.errors import ApiError, invalid
from lorafleet_runtime.frontend.constraint_fields import ConstraintFields

MAX_STOP_STRINGS = 16
MAX_LOGPROBS = 20

TokenId = Annotated[int, Field(ge=0)]
Bias = Annotated[float, Field(ge=-100, le=100)]

# Values that change nothing, for OpenAI fields that are not implemented; None always is one.
_NO_OPS: dict[str, tuple[Any, ...]] = {
    "audio": (), "best_of": (1,), "echo": (False,), "function_call": ("none",), "functions": ([],),
    "modalities": (["text"],), "prediction": (), "priority": (0,), "reasoning_effort": ("none",),
    "service_tier": ("auto", "default"), "store": (False,),
    "spaces_between_special_tokens": (True,), "suffix": ("",), "tool_choice": ("none", "auto"),
    "tools": ([],), "truncate_prompt_tokens": (), "verbosity": ("medium",), "web_search_options": (),
}  # fmt: skip
# Labels and hints whose effect is the server's own business.
_LABELS = {"metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"}


# Of orders on the admin port: an error message must not repeat them.
_SECRET_FIELDS = {"url", "authorization"}


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow")
    type: str
    text: str | None = None


class Message(BaseModel):
    """One turn. Content may come in parts, as long as all of them are text."""

    model_config = ConfigDict(extra="allow")
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[_Part] | None = None
    name: str | None = None

    def plain(self, index: int) -> dict[str, Any]:
        """As chat templates want it: content is one string. Raises ApiError naming the message."""
        where = f"messages[{index}]"
        if self.role in ("tool", "function") or (self.model_extra or {}).get("tool_calls"):
            raise invalid("tool calls are not supported", f"{where}.role", "unsupported")
        parts = self.content if isinstance(self.content, list) else []
        for at, part in enumerate(parts):
            if part.type != "text" or part.text is None:
                message = f"content of type {part.type!r} is not supported; this model reads text only"
                raise invalid(message, f"{where}.content[{at}].type", "unsupported")
        text = "".join(part.text or "" for part in parts) if parts else self.content or ""
        # Templates are older than the role; OpenAI treats the two alike.
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": text} | ({"name": self.name} if self.name else {})


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False
    continuous_usage_stats: Literal[False] = False
    include_obfuscation: bool = False


class Resume(BaseModel):
    """Tokens that another replica has already generated and delivered."""

    model_config = ConfigDict(extra="forbid")
    output_token_ids: list[TokenId]


class GenerationRequest(ConstraintFields, BaseModel):
    """What both routes have in common. `None` and absent mean the same, as in OpenAI's API."""

    model_config = ConfigDict(extra="allow")
    model: str
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1, le=16)
    stop: str | list[str] = []
    max_tokens: int | None = Field(None, ge=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[TokenId, Bias] = {}
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stream: bool = False
    stream_options: StreamOptions | None = None

    top_k: int = Field(0, ge=-1)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    ignore_eos: bool = False
    stop_token_ids: list[TokenId] = Field([], max_length=256)
    min_tokens: int = Field(0, ge=0)
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    return_token_ids: bool = False
    resume: Resume | None = None
    user: str = Field("", max_length=512)

    @property
    def stop_strings(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, values: Any) -> Any:
        if isinstance(values, dict):
            return {key: value for key, value in values.items() if value is not None}
        return values

    @field_validator("stop")
    @classmethod
    def _few_and_not_empty(cls, value: str | list[str]) -> str | list[str]:
        strings = [value] if isinstance(value, str) else value
        if len(strings) > MAX_STOP_STRINGS:
            raise ValueError(f"at most {MAX_STOP_STRINGS} stop strings are allowed, got {len(strings)}")
        if any(string == "" for string in strings):
            raise ValueError("a stop string must not be empty")
        return value

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if name in _LABELS or (name in _NO_OPS and value in _NO_OPS[name]):
                continue
            if name in _NO_OPS:
                raise invalid(f"{name}={value!r:.80} is not supported", name, "unsupported")
            raise invalid(f"unrecognised parameter {name!r}", name, "unknown_parameter")
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options is only allowed with stream=true", "stream_options")
        if (asked := self.constraint) is not None:
            # The end of the text belongs to the constraint: it comes where that allows it, and when nothing else does.
            for name, value in (("ignore_eos", self.ignore_eos), ("min_tokens", self.min_tokens)):
                if value:
                    raise invalid(f"{name} does not go together with {asked.param}", name, "unsupported")
        if self.resume is not None and self.n != 1:
            raise invalid("resume needs n=1", "resume")
        return self


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = {}

    @model_validator(mode="after")
    def _logprobs_are_asked_for(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs needs logprobs=true", "top_logprobs")
        if self.continue_final_message and self.messages[-1].role != "assistant":
            message = "continue_final_message needs a last message of role assistant"
            raise invalid(message, "continue_final_message")
        return self


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`. `prompt` is text or token ids, one or several."""

    prompt: str | list[TokenId] | list[str] | list[list[TokenId]]
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    add_special_tokens: bool = True

    @property
    def prompts(self) -> list[str | list[int]]:
        """One entry per prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(item, int) for item in self.prompt):
            return [[item for item in self.prompt if isinstance(item, int)]]
        return [item for item in self.prompt if not isinstance(item, int)]


Request = TypeVar("Request", bound=BaseModel)


def parse(kind: type[Request], body: bytes) -> Request:
    """The request in a body. Raises ApiError 400: malformed JSON, or the first field that is wrong."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _first_problem(error) from None


def _first_problem(error: ValidationError) -> ApiError:
    problem = error.errors(include_url=False, include_context=False)[0]
    if problem["type"] == "json_invalid":
        reason = problem["msg"].removeprefix("Invalid JSON: ")
        return invalid(f"the body is not JSON: {reason}", None, "invalid_json")
    # A union reports a problem per member, named after the field; a client knows only the field.
    path = [part for part in problem["loc"] if isinstance(part, int) or _is_field(part)]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    if problem["type"] == "missing":
        return invalid(f"{where} is required", where, "missing_required_parameter")
    hidden = isinstance(problem["input"], dict | list) or (path and path[-1] in _SECRET_FIELDS)
    got = "" if hidden else f", got {problem['input']!r:.80}"
    message = problem["msg"].removeprefix("Value error, ")
    return invalid(f"{where or 'body'}: {message[:1].lower() + message[1:]}{got}", where or None)


def _is_field(part: str) -> bool:
    return part.isidentifier() and part not in ("str", "int", "float", "bool")
