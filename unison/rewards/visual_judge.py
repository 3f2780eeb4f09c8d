"""A judge that looks at pictures and answers in words: a model of `transformers`, or one behind an endpoint.

Both are asked in one turn, a picture and a text. A verdict is Yes or No: our own model is not asked to write it but
compared in what it gives to the two words as its next one, as in `llm_judge`; an endpoint writes, and how its reply is
read is up to the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

import torch

from unison.hub import locate
from unison.rewards.llm_judge import LONGEST, WORDS, first_shares, require_words
from unison.rewards.models import load
from unison.rewards.remote.endpoint import SCHEMES, Endpoint, Message
from unison.rewards.remote.http import ClientError

if TYPE_CHECKING:
    from PIL.Image import Image

AT_ONCE = 16  # pictures that our own model looks at in one pass
WRITTEN = 256  # tokens of its reply

Form: TypeAlias = Literal["verdict", "text"]
"""What is wanted: Yes or No, or any text."""


class Request(NamedTuple):
    """A picture, and what is asked about it."""

    image: Image
    text: str


@dataclass(frozen=True)
class Told:
    """What came of a request."""

    text: str | None
    """The reply; None where there is none."""
    failure: str = ""
    """Why there is none: a word or two, a colon, and the whole message."""
    cost: Mapping[str, int] = field(default_factory=dict)
    """`requests` made, and `prompt_tokens` and `completion_tokens` where the endpoint counts them."""


class VisualJudge(Protocol):
    """Answers requests in their order, each as soon as it is known."""

    name: str
    """The model, without its address."""
    sees: str
    """How its answers come about, for the protocol of figures."""

    def __call__(self, requests: Sequence[Request]) -> Iterator[Told]: ...


def load_judge(name: str, form: Form, device: torch.device, endpoint: Mapping[str, Any]) -> VisualJudge:
    """The judge of a folder, a hub id or an address `http://host:port/v1#model`, which is shown a picture as a trial.

    Args:
        endpoint: fields of `Endpoint`, for an address.

    Raises:
        ValueError: no such checkpoint, or one that cannot look or cannot say Yes and No; no such endpoint, or one that
            refuses a picture.
    """
    if name.startswith(SCHEMES):
        return EndpointJudge(name, endpoint)
    return OwnJudge(locate(name), form, device)


class EndpointJudge:
    """A model behind an OpenAI-compatible endpoint."""

    def __init__(self, address: str, fields: Mapping[str, Any]) -> None:
        from dataclasses import replace

        from PIL import Image

        self.endpoint = replace(Endpoint.parse(address), **fields)
        self.endpoint.check(image=Image.new("RGB", (64, 64), "grey"))
        self.name = self.endpoint.model
        self.sees = f"OpenAI-compatible endpoint, picture before text, temperature 0, at most {LONGEST} tokens"

    def __call__(self, requests: Sequence[Request]) -> Iterator[Told]:
        for outcome in self.endpoint.outcomes([[Message("user", tuple(r))] for r in requests], LONGEST):
            if isinstance(outcome, ClientError):
                yield Told(None, f"{outcome.kind}: {outcome}", {"requests": outcome.attempts})
            else:
                made = outcome.used.get("attempts", 0)
                tokens = {name: n for name, n in outcome.used.items() if name != "attempts" and n}
                yield Told(outcome.text, cost={"requests": made, **tokens})


class OwnJudge:
    """An image-text model of `transformers` that has a chat template."""

    def __init__(self, path: str, form: Form, device: torch.device) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.name, self.form = path, form
        self.model, self.processor = load(AutoModelForImageTextToText, AutoProcessor, path, device, dtype)
        if not getattr(self.processor, "chat_template", None):  # some processors lack the attribute, not the template
            raise ValueError(f"checkpoint {path!r} cannot judge: it has no chat template")
        require_words(self.processor.tokenizer, path)
        written = f"greedy, at most {WRITTEN} tokens"
        asked = "whichever of Yes and No it gives more to as its next token" if form == "verdict" else written
        self.sees = f"transformers, {str(dtype).removeprefix('torch.')}, picture before text, {asked}"

    def __call__(self, requests: Sequence[Request]) -> Iterator[Told]:
        for start in range(0, len(requests), AT_ONCE):
            for text in self._answer(requests[start : start + AT_ONCE]):
                yield Told(text, cost={"requests": 1})

    @torch.no_grad()
    def _answer(self, requests: Sequence[Request]) -> list[str]:
        inputs = self._inputs(requests)
        tokenizer = self.processor.tokenizer
        if self.form == "verdict":
            shares = first_shares(self.model, tokenizer, inputs, self.name)
            return [WORDS[share <= 0.5] for share in shares]
        ids = self.model.generate(
            **inputs, max_new_tokens=WRITTEN, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        return tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def _inputs(self, requests: Sequence[Request]) -> Any:
        conversations = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]
            for image, text in ((r.image.convert("RGB"), r.text) for r in requests)
        ]
        quiet = {"enable_thinking": False} if "enable_thinking" in str(self.processor.chat_template) else {}
        inputs = self.processor.apply_chat_template(
            conversations,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
            **quiet,
        )
        return inputs.to(self.model.device, self.model.dtype)
