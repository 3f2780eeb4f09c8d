"""The class by which lmms-eval runs our checkpoints. It imports lmms-eval; nothing else of ours imports it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult  # pyright: ignore[reportMissingImports]
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

from unison.config import PolicyConfig, placement
from unison.evaluation.harness import Asked, Respondent
from unison.policies import load_policy


class Model(lmms):
    """Any checkpoint of our families. Options are given as `--model_args pretrained=...,dtype=bfloat16`."""

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        dtype: Literal["float32", "bfloat16"] = "float32",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        max_tokens: int = 512,
        seed: int = 0,
        whole_replies: bool = False,
    ) -> None:
        """
        Args:
            pretrained: checkpoint folder, hub id or assets/<name>.
            dtype: type of the weights and of matrix products.
            batch_size: requests answered in one pass; `auto` is not known.
            max_batch_size: of no use, but passed by lmms-eval.
            device: of no use, but passed by lmms-eval: `accelerate` gives every process its own.
            max_tokens: longest reply where a task does not say.
            seed: of tasks that ask for samples.
            whole_replies: give tasks the thought too, not the answer block's content alone.

        Raises:
            ValueError: no such checkpoint, or a batch size that is no number.
        """
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size = {batch_size!r}: must be a number, at least 1")
        self.accelerator = Accelerator(**placement())
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device
        policy = load_policy(PolicyConfig(pretrained, dtype=dtype, compute_dtype=dtype)).to(self.device)
        self.respondent = Respondent(policy, int(batch_size), int(max_tokens), int(seed), not whole_replies)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """A reply to every request."""
        told = [(text, shows, task, split, doc) for text, _, shows, doc, task, split in (r.args for r in requests)]
        replies = self.respondent.replies(self._asked(told), [request.args[1] for request in requests])
        return list(tqdm(replies, total=len(requests), disable=self.rank != 0, desc="replies"))

    def loglikelihood(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """Minus the log-probability of what each request says, as lmms-eval compares it, and whether it is greedy.

        The pairs are wrapped, since the evaluator of lmms-eval 0.7.3 turns bare ones into text.
        """
        told, said = [], []
        for request in requests:
            text, target, *rest = request.args
            shows, doc, task, split = rest or (None, None, "", "")
            told.append((text, shows, task, split, doc))
            said.append(target(self.task_dict[task][split][doc]) if callable(target) else target)
        found = self.respondent.surprises(self._asked(told), said)
        pairs = tqdm(found, total=len(requests), disable=self.rank != 0, desc="options")
        return [GenerationResult(pair) for pair in pairs]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not carried.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("tasks of several rounds are not carried: choose tasks of one reply a question")

    def _asked(self, told: Sequence[tuple[str, Any, str, str, Any]]) -> list[Asked]:
        """Requests with the pictures that their documents show; equal ones are numbered."""
        seen: Counter[str] = Counter()
        asked = []
        for text, shows, task, split, doc in told:
            pictures = shows(self.task_dict[task][split][doc]) if shows else None
            name = f"{task}/{split}/{doc}"
            asked.append(Asked(f"{name}/{seen[name]}", text, pictures or ()))
            seen[name] += 1
        return asked
