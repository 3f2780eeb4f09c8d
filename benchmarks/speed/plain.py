"""CoRL's step on a Janus as one would first write it, the other side of `benchmarks.speed.step`.

Samples come from `transformers`' own `generate`, a row per sample. Scoring repeats prompt and picture in every row, has
the logits of every position of the whole vocabulary at once, and lets autograd keep what it wants. The numbers are
Unison's: log-probabilities of the guided distribution, a ratio to the policy that sampled, the mean over tokens and
then over samples, AdamW after clipping the norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from unison.config import OptimConfig
from unison.policies.janus.policy import Janus
from unison.types import Context, Sampling


class Plain:
    """The whole step on the weights of a policy, of which only the rendering of prompts is used."""

    def __init__(self, policy: Janus, optim: OptimConfig) -> None:
        self.policy, self.network, self.optim = policy, policy.network, optim
        self.trained = [p for p in policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, optim.learning_rate, betas=optim.betas, weight_decay=optim.weight_decay
        )

    # -- sampling ----------------------------------------------------------------------------------------------------

    def draw(self, prompt: Context, group: int, guidance: float, greedy: bool = False) -> Tensor:
        """A group of drawings of one prompt. [G, N]"""
        ids = self._prompt(prompt)
        return self.network.generate(  # type: ignore[return-value]
            ids,
            attention_mask=torch.ones_like(ids),  # type: ignore[arg-type]
            generation_mode="image",
            num_return_sequences=group,
            guidance_scale=guidance,
            do_sample=True,
            top_k=1 if greedy else 0,  # 0 is off: all of the codebook, as Unison
        )

    def write(self, question: Context, group: int, length: int, greedy: bool = False) -> list[Tensor]:
        """A group of replies to one question about a picture, each up to its end. each [L]"""
        ids, pixels = self._question(question)
        written: Any = self.network.generate(
            ids,
            attention_mask=torch.ones_like(ids),  # type: ignore[arg-type]
            pixel_values=pixels,
            generation_mode="text",
            num_return_sequences=group,
            max_new_tokens=length,
            suppress_tokens=[self.policy.tokenizer.image_token_id],  # a reply with one cannot be scored again
            do_sample=True,
            top_k=1 if greedy else 0,
        )
        return [_cut(row, self.policy.tokenizer.eos_token_id) for row in written[:, ids.shape[1] :]]

    # -- scoring -----------------------------------------------------------------------------------------------------

    def score_drawings(self, prompt: Context, ids: Tensor, sampling: Sampling) -> Tensor:
        """Log-probabilities of drawings of one prompt. [G, N] -> [G, N]"""
        conditional = self._prompt(prompt)
        rows = [conditional.expand(len(ids), -1)]
        if sampling.scores_guided:
            unconditional = torch.tensor(self.policy._hidden(conditional.shape[1]))
            rows.append(unconditional.expand(len(ids), -1))
        prompts = self.network.get_input_embeddings()(torch.cat(rows))
        drawn = self.network.prepare_embeddings_for_image_generation(ids).repeat(len(rows), 1, 1)
        embeds = torch.cat([prompts, drawn[:, :-1]], 1)
        states = self.network.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        logits = self.network.model.generation_head(states[:, conditional.shape[1] - 1 :]).float()
        if sampling.scores_guided:
            c, u = logits.chunk(2)
            logits = u + sampling.guidance * (c - u)
        return torch.log_softmax(logits, -1).gather(-1, ids[..., None]).squeeze(-1)

    def score_replies(self, question: Context, replies: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Log-probabilities of replies to one question, and where there are any. [G, L] both"""
        prompt, pixels = self._question(question)
        given = pad_sequence(list(replies), batch_first=True)
        mask = torch.arange(given.shape[1]) < torch.tensor([len(reply) for reply in replies])[:, None]
        ids = torch.cat([prompt.expand(len(given), -1), given], 1)
        seen = torch.cat([torch.ones_like(prompt).expand(len(given), -1), mask.long()], 1)
        repeated = pixels.expand(len(given), -1, -1, -1)
        logits: Any = self.network(ids, pixel_values=repeated, attention_mask=seen, use_cache=False).logits  # type: ignore[arg-type]
        logp = torch.log_softmax(logits[:, prompt.shape[1] - 1 : -1].float(), -1)
        return logp.gather(-1, given[..., None]).squeeze(-1), mask

    # -- the update --------------------------------------------------------------------------------------------------

    def update(
        self,
        prompt: Context,
        drawings: Tensor,
        question: Context,
        replies: Sequence[Tensor],
        sampling: Sampling,
        advantages: Tensor,
    ) -> tuple[float, float]:
        """One optimiser step on a group; the loss and the gradient's norm before clipping."""
        drawn = self.score_drawings(prompt, drawings, sampling)
        loss = _loss(drawn, torch.ones_like(drawn, dtype=torch.bool), advantages)
        loss.backward()
        written = _loss(*self.score_replies(question, replies), advantages)
        written.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.trained, self.optim.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach() + written.detach()), float(norm)

    def _prompt(self, context: Context) -> Tensor:
        (ids,) = self.policy._pieces(context, "image")  # a prompt of text is one run of ids
        return torch.tensor([ids])

    def _question(self, context: Context) -> tuple[Tensor, Tensor]:
        """Ids with a placeholder for every embedding of the picture [1, S], and its pixels [1, 3, H, W]."""
        before, picture, after = self.policy._pieces(context, "text")
        placeholders = [self.policy.tokenizer.image_token_id] * self.policy._size(picture)
        assert isinstance(before, list)
        assert isinstance(after, list)
        pixels = self.policy._pixels(picture)  # type: ignore[arg-type]
        return torch.tensor([[*before, *placeholders, *after]]), pixels.to(self.network.dtype)


def _loss(logp: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
    """Policy gradient of samples of the present policy, whose ratio is 1. [G, L], [G, L], [G] -> []"""
    ratio = (logp - logp.detach()).exp()
    per_sample = (ratio * mask).sum(1) / mask.sum(1)
    return -(advantages * per_sample).mean()


def _cut(row: Tensor, end: int) -> Tensor:
    ends = (row == end).nonzero()
    return row[: int(ends[0]) + 1] if len(ends) else row
