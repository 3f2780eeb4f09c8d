"""A language model judges free text: does a reply say the same as the true answer.

The judge is any causal language model of `transformers`, which is not asked to write but compared in what it gives to
Yes and to No as its next word; or a model behind an OpenAI-compatible endpoint (`llm_judge:http://host:port/v1#model`).
It is asked where `accuracy` cannot tell: a reply that equals the answer is right; an empty one is wrong, and so is a
multiple-choice one that does not equal it. Of equal replies it is asked once.

Source: UniRL, arXiv 2505.23380, has free text judged by a language model; the request is ours. A policy that is trained
on such a judge may learn to please it: keep `accuracy`, or people, as a check.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from unison.answers import parse_answer
from unison.rewards.models import BATCH, device_of, in_chunks, load
from unison.rewards.remote.endpoint import Endpoint, Message
from unison.rewards.text import accuracy
from unison.types import Trajectory

REQUEST = """{question}True answer: {truth}
Reply: {reply}

Does the reply say the same as the true answer? Other words for the same things are fine, and so are more words. \
Other objects, numbers, colors or positions are not. Answer with one word, Yes or No."""
WORDS = ("Yes", "No")
VERDICT = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
LONGEST = 1024  # tokens of an endpoint's reply: a model that thinks first needs them, others stop after a word
FIRST_TOKENS = 10  # of the likeliest first tokens those that are read as Yes or No

Ask: TypeAlias = Callable[[list[str]], list[float | None]]


def llm_judge(trajectories: Sequence[Trajectory], policy: Any, judge: str | Endpoint) -> list[float | None]:
    """1 where the judge finds that the last reply says what the true answer says, else 0.

    None where there is no reply or no answer, and where an endpoint says neither Yes nor No.

    Args:
        judge: checkpoint of a causal language model, a folder or hub id, or an endpoint.
    """
    if isinstance(judge, Endpoint):
        return _judged(trajectories, lambda requests: told_verdicts(requests, judge))
    shares = llm_judge_soft(trajectories, policy, judge)
    return [None if share is None else float(share > 0.5) for share in shares]


def llm_judge_soft(trajectories: Sequence[Trajectory], policy: Any, judge: str | Endpoint) -> list[float | None]:
    """The judge's P(Yes) / (P(Yes) + P(No)), in [0, 1]: sure judges are near 0 or 1.

    An endpoint must give log-probabilities, and its model must answer at once; None where neither word is among the ten
    likeliest, and as above.
    """
    if isinstance(judge, Endpoint):
        return _judged(trajectories, lambda requests: told_shares(requests, judge))
    return _judged(trajectories, lambda requests: own_shares(requests, judge, device_of(policy)))


def _judged(trajectories: Sequence[Trajectory], ask: Ask) -> list[float | None]:
    values = accuracy(trajectories, None)
    asked = {row: request(t) for row, t in enumerate(trajectories) if values[row] == 0 and _is_open(t)}
    distinct = list(dict.fromkeys(asked.values()))
    told = dict(zip(distinct, ask(distinct) if distinct else [], strict=True))
    return [told[asked[row]] if row in asked else value for row, value in enumerate(values)]


def _is_open(trajectory: Trajectory) -> bool:
    return trajectory.item.kind == "open_ended" and bool(parse_answer(trajectory.texts[-1]))


def request(trajectory: Trajectory) -> str:
    """What the judge is asked; the reply is put on one line, so that it cannot pass for another part."""
    item, reply = trajectory.item, " ".join(parse_answer(trajectory.texts[-1]).split())
    question = f"Question: {item.question}\n" if item.question else ""
    return REQUEST.format(question=question, truth=item.answer, reply=reply)


# -- a model of our own ------------------------------------------------------------------------------------------------


def own_shares(requests: Sequence[str], path: str, device: torch.device) -> list[float | None]:
    """P(Yes) / (P(Yes) + P(No)) of the first token after every request, BATCH requests in one pass.

    Raises:
        ValueError: the checkpoint is no causal language model, or has no token for Yes and for No.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model, tokenizer = load(AutoModelForCausalLM, AutoTokenizer, path, device, dtype)
    require_words(tokenizer, path)

    def judge(chunk: list[str]) -> list[float]:
        texts = [_prompt(tokenizer, text) for text in chunk]
        inputs = tokenizer(
            texts,
            padding=True,
            padding_side="left",
            add_special_tokens=not tokenizer.chat_template,
            return_token_type_ids=False,
            return_tensors="pt",
        )
        return first_shares(model, tokenizer, inputs.to(device), path)

    return in_chunks(judge, requests, BATCH)


def require_words(tokenizer: Any, path: str) -> None:
    """Makes a tokenizer pad, and checks that it can say Yes and No.

    Raises:
        ValueError: it has no token for one of them.
    """
    for word in WORDS:
        word_ids(tokenizer, word, path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def first_shares(model: Any, tokenizer: Any, inputs: Any, path: str) -> list[float]:
    """P(Yes) / (P(Yes) + P(No)) of the first token after each row of the inputs, which are padded on the left."""
    yes, no = (word_ids(tokenizer, word, path) for word in WORDS)
    # generate, and not a plain pass, since it knows what each model wants to be told of padding
    done = model.generate(
        **inputs,
        max_new_tokens=1,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=tokenizer.pad_token_id,
    )
    logits = done.logits[0].float()  # [B, V]
    return (logits[:, yes].logsumexp(-1) - logits[:, no].logsumexp(-1)).sigmoid().tolist()


def _prompt(tokenizer: Any, text: str) -> str:
    if not tokenizer.chat_template:
        return f"{text}\nVerdict:"
    messages = [{"role": "user", "content": text}]
    # templates that know no thinking ignore the last option
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)


def word_ids(tokenizer: Any, word: str, path: str) -> list[int]:
    """The tokens that are the word, in capitals or not, after a space or not.

    Raises:
        ValueError: there is none.
    """
    forms = [before + form for before in ("", " ") for form in (word, word.lower(), word.upper())]
    found = [tokenizer.encode(form, add_special_tokens=False) for form in forms]
    ids = {ids[0] for ids in found if len(ids) == 1} - {tokenizer.unk_token_id}
    if not ids:
        raise ValueError(f"checkpoint {path!r} cannot judge: its tokenizer has no token for {word!r}")
    return sorted(ids)


# -- an endpoint -------------------------------------------------------------------------------------------------------


def told_verdicts(requests: Sequence[str], endpoint: Endpoint) -> list[float | None]:
    """1 for Yes, 0 for No, None for anything else."""
    told = endpoint.complete([[Message("user", (text,))] for text in requests], LONGEST)
    return [read_verdict(completion.text) for completion in told]


def told_shares(requests: Sequence[str], endpoint: Endpoint) -> list[float | None]:
    """P(Yes) / (P(Yes) + P(No)) of the endpoint's first token."""
    told = endpoint.complete([[Message("user", (text,))] for text in requests], 1, FIRST_TOKENS)
    return [read_share(completion.first) for completion in told]


def read_verdict(text: str) -> float | None:
    """Whether a reply, its thoughts left out, begins with Yes (1) or No (0)."""
    found = VERDICT.match(text.rpartition("</think>")[2])
    return float(found[1].lower() == "yes") if found else None


def read_share(first: Mapping[str, float]) -> float | None:
    """Share of Yes in what the likeliest first tokens give to Yes and No."""
    words = {token: token.strip().lower() for token in first}
    yes, no = (sum(math.exp(x) for token, x in first.items() if words[token] == word) for word in ("yes", "no"))
    return yes / (yes + no) if yes + no else None
