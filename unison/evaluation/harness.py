"""The tasks of lmms-eval on our checkpoints: MMMU, MMStar, POPE, MathVista and what else its list holds, unchanged.

    make harness
    PYTHONPATH=.venv/harness python -m unison.evaluation.harness --model unison \\
        --model_args pretrained=<checkpoint> --tasks pope

All options are lmms-eval's own. What it asks becomes contexts of a policy here: pictures first, then the text, as one
user turn. Left out: several rounds, video and audio. lmms-eval's model class is in `harness_model.py`.

Source: the interface of lmms-eval 0.7.3, https://github.com/EvolvingLMMs-Lab/lmms-eval.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from PIL.Image import Image

from unison.answers import parse_answer
from unison.evaluation.suites.understanding import GREEDY
from unison.policies.actions import given, tokens_of
from unison.policies.base import Policy
from unison.scenarios.common import Seeds
from unison.types import Context, Item, Sampling

NAME = "unison"
MODEL = "unison.evaluation.harness_model.Model"
PACKAGE = "lmms_eval"
INSTALL = "make harness, then PYTHONPATH=.venv/harness (docs/evaluation.md)"
DELIMITER = "\n\n"  # between the examples of base models; replies of chat models hold empty lines
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """What a task asks."""

    name: str
    """Names the request; its seed follows from it."""
    text: str
    pictures: Sequence[Any] = ()

    @property
    def context(self) -> Context:
        """One user turn, pictures first.

        Raises:
            ValueError: what is shown is no picture.
        """
        for shown in self.pictures:
            if not isinstance(shown, Image):
                raise ValueError(f"{self.name} shows a {type(shown).__name__}: tasks with pictures alone can be run")
        return Context((*(picture.convert("RGB") for picture in self.pictures), self.text))


@dataclass(frozen=True)
class Respondent:
    """A policy that replies to what tasks ask."""

    policy: Policy
    batch_size: int
    max_tokens: int
    """Longest reply where a task does not say."""
    seed: int
    answer_alone: bool = True
    """Reply with the answer block's content where there is one: tasks know no such block."""

    @torch.no_grad()
    def replies(self, asked: Sequence[Asked], settings: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        """A reply to each, in order, cut at the task's stop words.

        Args:
            settings: `generation_kwargs` of each one's task.
        """
        for rows, sampling in self._alike([self._sampling(s) for s in settings]):
            items = [Item(asked[row].name) for row in rows]
            seeds = Seeds(self.seed, 0).of(items, 1, "write")
            actions = self.policy.write([asked[row].context for row in rows], sampling, seeds)
            for row, text in zip(rows, self.policy.decode(actions), strict=True):
                yield stopped(parse_answer(text) if self.answer_alone else text, settings[row].get("until"))

    @torch.no_grad()
    def surprises(self, asked: Sequence[Asked], said: Sequence[str]) -> Iterator[tuple[float, bool]]:
        """Minus the log-probability of each continuation, and whether it is what greedy sampling would write.

        lmms-eval picks the option of the *least* value, since the models that it carries return losses.
        """
        for start in range(0, len(said), self.batch_size):
            part = slice(start, start + self.batch_size)
            contexts = [one.context for one in asked[part]]
            whole = [tokens_of(action) for action in self.policy.encode(said[part])]
            tokens = [given("text", action.ids[:-1]) for action in whole]  # without the end of the turn
            sharp = [replace(action, sampling=Sampling(temperature=GREEDY)) for action in tokens]
            for logp, top in zip(self.policy(contexts, tokens), self.policy(contexts, sharp), strict=True):
                yield -float(logp.sum()), bool((top > math.log(0.5)).all())

    def _alike(self, samplings: Sequence[Sampling]) -> Iterator[tuple[Sequence[int], Sampling]]:
        """Neighbouring rows of one sampling, at most `batch_size` of them."""
        start = 0
        for row, sampling in enumerate(samplings):
            last = row + 1 == len(samplings) or samplings[row + 1] != sampling
            if last or row + 1 - start == self.batch_size:
                yield range(start, row + 1), sampling
                start = row + 1

    def _sampling(self, settings: Mapping[str, Any]) -> Sampling:
        """Greedy unless a task asks for samples; beams and cut-off distributions are not carried, which is logged."""
        temperature = float(settings.get("temperature") or 0)
        draws = temperature > 0 and settings.get("do_sample") is not False
        left = [name for name, off in (("num_beams", 1), ("top_p", 1), ("top_k", 0)) if _is_set(settings, name, off)]
        if left and (draws or "num_beams" in left):
            logger.warning("%s of a task is not carried: tokens are drawn from the whole distribution", ", ".join(left))
        longest = int(settings.get("max_new_tokens") or self.max_tokens)
        return Sampling(temperature=temperature if draws else GREEDY, max_tokens=longest)


def _is_set(settings: Mapping[str, Any], name: str, off: float) -> bool:
    return settings.get(name) not in (None, off)


def stopped(text: str, until: str | Sequence[str] | None) -> str:
    """The reply up to the first stop word; an empty line is none."""
    for word in [until] if isinstance(until, str) else until or ():
        if word.strip():
            text = text.split(word)[0]
    return text


def register() -> None:
    """Tells lmms-eval of our models, under the name `unison`.

    Raises:
        ValueError: lmms-eval is not installed.
    """
    if find_spec(PACKAGE) is None:
        raise ValueError(f"the harness lmms-eval is not installed: {INSTALL}")
    from lmms_eval.models import MODEL_REGISTRY_V2  # pyright: ignore[reportMissingImports]
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    MODEL_REGISTRY_V2.register_manifest(ModelManifest(NAME, simple_class_path=MODEL), overwrite=True)


def main() -> None:
    """lmms-eval's command line, which knows our models."""
    try:
        register()
    except ValueError as error:
        sys.exit(f"unison: error: {error}")
    from lmms_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    cli_evaluate()


if __name__ == "__main__":
    main()
