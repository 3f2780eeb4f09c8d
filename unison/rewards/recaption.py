"""The text side of CoRL's cycle consistency: caption the drawing, compare the caption with the prompt.

Rewards are named `<captioner>_<comparison>`. Captioners: BLIP, or the policy itself. Comparisons: BERTScore, or the
cosine of sentence embeddings. The paper's own comparison is SPICE. It is left out, since no maintained parser of free
text into scene graphs runs from packages alone: they fetch weights or a parser from elsewhere. In the embedded world
`world_tuples` keeps its idea.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import AutoModel, AutoTokenizer, BlipForConditionalGeneration, BlipProcessor

from unison.answers import parse_answer
from unison.rewards.models import clamp, device_of, greedy_matches, judge_pairs, load
from unison.types import Context, Sampling, Trajectory

if TYPE_CHECKING:
    from PIL.Image import Image

CAPTION_TOKENS = 50
REQUEST = "Describe the image in one sentence."
NEARLY_GREEDY = Sampling(temperature=0.001, max_tokens=CAPTION_TOKENS)  # ties are broken by a fixed seed
LAYER = 17 / 24  # BERTScore's layer as a share of all: 17 of roberta-large, its authors' choice for English

Compare: TypeAlias = Callable[[list[str], list[str], str, torch.device], list[float]]


# -- rewards ---------------------------------------------------------------------------------------------------------


def blip_bertscore(trajectories: Sequence[Trajectory], policy: Any, blip: str, encoder: str) -> list[float | None]:
    """BERTScore F1 of BLIP's caption of the last drawing against the prompt (as CoRL's released code), in [0, 1].

    None where there is no drawing, no prompt, or the caption is empty.
    """
    device = device_of(policy)
    return _recaption(trajectories, lambda images: blip_captions(images, blip, device), bertscore, encoder, device)


def blip_embedding(trajectories: Sequence[Trajectory], policy: Any, blip: str, encoder: str) -> list[float | None]:
    """Cosine of the sentence embeddings of BLIP's caption and the prompt, clamped to [0, 1]; None as above."""
    device = device_of(policy)
    return _recaption(trajectories, lambda images: blip_captions(images, blip, device), similarity, encoder, device)


def self_bertscore(trajectories: Sequence[Trajectory], policy: Any, encoder: str) -> list[float | None]:
    """As `blip_bertscore`, with the policy's own caption (CoRL's later code)."""
    return _recaption(trajectories, lambda images: own_captions(images, policy), bertscore, encoder, device_of(policy))


def self_embedding(trajectories: Sequence[Trajectory], policy: Any, encoder: str) -> list[float | None]:
    """As `blip_embedding`, with the policy's own caption."""
    return _recaption(trajectories, lambda images: own_captions(images, policy), similarity, encoder, device_of(policy))


def _recaption(
    trajectories: Sequence[Trajectory],
    caption: Callable[[list[Image]], list[str]],
    compare: Compare,
    encoder: str,
    device: torch.device,
) -> list[float | None]:
    def judge(images: list[Image], prompts: list[str]) -> list[float | None]:
        captions = caption(images)
        scores = compare(captions, prompts, encoder, device)
        return [score if words else None for words, score in zip(captions, scores, strict=True)]

    return judge_pairs(trajectories, judge)


# -- captions --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def blip_captions(images: list[Image], path: str, device: torch.device) -> list[str]:
    """Greedy captions of BLIP (arXiv 2201.12086), 50 new tokens at most."""
    model, processor = load(BlipForConditionalGeneration, BlipProcessor, path, device)
    pixels = processor(images=images, return_tensors="pt").to(device)
    ids = model.generate(**pixels, max_new_tokens=CAPTION_TOKENS, do_sample=False, num_beams=1)
    return [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]


def own_captions(images: list[Image], policy: Any) -> list[str]:
    """The policy's captions, 50 tokens at most; of a reply with answer tags what stands in them."""
    contexts = [Context((image, REQUEST)) for image in images]
    replies = policy.write(contexts, NEARLY_GREEDY, [0] * len(images))
    return [parse_answer(text) for text in policy.decode(replies)]


# -- comparisons -----------------------------------------------------------------------------------------------------


def bertscore(captions: list[str], prompts: list[str], path: str, device: torch.device) -> list[float]:
    """F1 of greedy token matching in contextual embeddings, clamped to [0, 1]; a text without a token earns 0.

    Source: Zhang et al. 2020, arXiv 1904.09675, F_BERT. Without idf weights and without rescaling by a baseline; the
    encoder's marks of beginning and end take no part.
    """
    states, mask, special = _encode([*captions, *prompts], path, device, LAYER)
    words = [row[keep] for row, keep in zip(states, mask & ~special, strict=True)]
    return [greedy_f1(c, p) for c, p in zip(words[: len(captions)], words[len(captions) :], strict=True)]


def greedy_f1(candidate: Tensor, reference: Tensor) -> float:
    """F1 of the greedy matches between token states [N, D] and [M, D]."""
    if not len(candidate) or not len(reference):
        return 0.0
    precision, recall = map(clamp, greedy_matches(candidate, reference))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def similarity(captions: list[str], prompts: list[str], path: str, device: torch.device) -> list[float]:
    """Cosine of mean-pooled sentence embeddings (Sentence-BERT, arXiv 1908.10084), clamped to [0, 1]."""
    states, mask, _ = _encode([*captions, *prompts], path, device)
    pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)  # [2B, D]
    return cosine_similarity(pooled[: len(captions)], pooled[len(captions) :]).clamp(0, 1).tolist()


@torch.no_grad()
def _encode(texts: list[str], path: str, device: torch.device, depth: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """States [B, S, D] after that share of the encoder's layers, what is no padding and what is a mark [B, S]."""
    model, tokenizer = load(AutoModel, AutoTokenizer, path, device)
    inputs = tokenizer(texts, padding=True, truncation=True, return_special_tokens_mask=True, return_tensors="pt")
    special = inputs.to(device).pop("special_tokens_mask").bool()
    layers = model(**inputs, output_hidden_states=True).hidden_states  # the first is the input's
    return layers[round(depth * (len(layers) - 1))], inputs["attention_mask"].bool(), special
