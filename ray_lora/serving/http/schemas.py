"""The JSON bodies of the HTTP routes, in and out. OpenAI's, vLLM's and Hugging Face's field names."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictStr

from ray_lora.bounds import check_name
from ray_lora.recipe import Json
from ray_lora.store.reports import Report

Name = Annotated[StrictStr, AfterValidator(check_name)]  # of adapters, users and requests
Key = Annotated[StrictStr, Field(max_length=4096)]  # a person's or a group's: data, of any letters


class Strict(BaseModel):
    """A body whose unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Lenient(BaseModel):
    """A body of another server's clients: fields that mean nothing here are passed over."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class PredictRequest(Strict):
    """`inputs` is one input of the adapter's task, or a list of them. Where `model` names several adapters,
    `parameters` are those of each, by its name."""

    model: Name | list[Name] | None = None
    inputs: Json
    parameters: dict[str, Json] = {}
    user: Name | None = None
    person: Key | None = None
    group: Key | None = None


class HubRequest(Strict):
    """Hugging Face's inference API: the adapter is named by the address. `stream` is of `text_generation`, the last
    four of `feature_extraction`."""

    inputs: Json
    parameters: dict[str, Json] | None = None
    stream: StrictBool | None = None
    normalize: bool | None = None
    prompt_name: Name | None = None
    truncate: bool | None = None
    truncation_direction: Name | None = None


class PredictResponse(BaseModel):
    """Each prediction has the shape of the Hugging Face pipeline of that task."""

    model: str
    version: int
    sha256: str
    task: str
    predictions: list[Json]
    served_by: Literal["person", "group", "parent"] | None = None


class OneAnswer(PredictResponse):
    """What one of several adapters answers; `id` is what feedback names."""

    id: str


class SeveralResponse(BaseModel):
    """Each adapter's answers, under the name that the request gives it."""

    model: list[str]
    answers: dict[str, OneAnswer]


class ClassifyRequest(Lenient):
    """vLLM's `/classify`. Its fields that would change the answer are refused unless they ask for what is done."""

    model: Name | None = None
    input: StrictStr | list[StrictStr]
    user: Name | None = None
    use_activation: Literal[True] | None = None
    activation: Literal[True] | None = None
    softmax: Literal[True] | None = None
    add_special_tokens: Literal[True] | None = None
    truncate_prompt_tokens: None = None
    mm_processor_kwargs: None = None
    chat_template: None = None
    messages: None = None


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class ClassifyData(BaseModel):
    index: int
    label: str
    probs: list[float]  # in the order of the adapter's labels
    num_classes: int


class ClassifyResponse(BaseModel):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    version: int
    sha256: str
    data: list[ClassifyData]
    usage: Usage


class EmbeddingsRequest(Lenient):
    """OpenAI's; the base's mean-pooled hidden states. vLLM's fields that would change the answer are refused unless
    they ask for what is done."""

    model: Name | None = None
    input: StrictStr | list[StrictStr]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    use_activation: Literal[False] | None = None
    normalize: Literal[False] | None = None
    add_special_tokens: Literal[True] | None = None
    truncate_prompt_tokens: None = None
    mm_processor_kwargs: None = None
    chat_template: None = None
    messages: None = None


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingsResponse(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class FeedbackRequest(Strict):
    """What somebody says of the answer whose `x-request-id` was `id`: good or bad, or a number."""

    id: Name
    value: StrictBool | Annotated[float, Field(strict=True, allow_inf_nan=False)]
    user: Name | None = None


class FeedbackResponse(BaseModel):
    """The version that had answered."""

    id: str
    model: str
    version: int
    variant: str


class LoadRequest(Lenient):
    """vLLM's; without `lora_path` the adapter is the store's own. `pinned` is SGLang's. `if_version`: only where this
    version is the newest (with `lora_path`; 0: where there is none), or the one that the bare name means."""

    lora_name: Name
    lora_path: Annotated[StrictStr, Field(max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")] | None = None
    load_inplace: StrictBool = False
    pinned: StrictBool = False
    if_version: Annotated[int, Field(strict=True, ge=0)] | None = None


class UnloadRequest(Lenient):
    """vLLM's. `if_version`: only where the bare name means this version."""

    lora_name: Name
    if_version: Annotated[int, Field(strict=True, ge=0)] | None = None


class ModelCard(BaseModel):
    """OpenAI's model object, and what is known of an adapter; beside it what its task shows: `labels`."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "ray_lora"
    root: str
    parent: str | None
    task: str | None = None
    input: list[str] = []  # kinds of value that `inputs` holds: text, image
    columns: list[str] = []  # what one input has; where it is more than one, an input is an object of these
    optional: list[str] = []  # what it may have beside
    full: dict[str, Json] = {}  # parameters that leave nothing of an answer out
    shown: list[str] = []  # the keys of this object that the task adds
    version: int | None = None
    aliases: list[str] = []
    versions: list[int] = []
    metrics: dict[str, float] = {}
    sha256: str | None = None
    split: dict[int, float] = {}  # version -> weight, of the bare name; empty: this version answers
    shadow: int | None = None  # answers copies of the bare name's requests, for the record
    share: float | None = None  # of the requests that are copied
    served: bool = True  # false: it belongs to another base


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Explanation(BaseModel):
    ref: str
    sha256: str
    report: Report | None


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    error: ErrorBody


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text}
    for status, text in {
        400: "the input is wrong",
        401: "an API key is needed",
        403: "the API key is not for this",
        404: "the ref names nothing",
        409: "another version is there than the request expects; x-adapter says which",
        408: "the body was not there in time",
        413: "too large",
        415: "the body is of a type that is not taken",
        429: "the adapter's share of the queue is used up",
        503: "overloaded; Retry-After says when to come again",
        507: "the disk is full, and nothing was kept",
    }.items()
}

FORM: dict[str, Any] = {  # beside JSON, of /v1/predict
    "requestBody": {
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "one picture"},
                        "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "model": {"type": "string", "description": "a name, or a JSON list of names"},
                        "parameters": {"type": "string", "description": "a JSON object"},
                        "user": {"type": "string"},
                    },
                }
            }
        }
    }
}
