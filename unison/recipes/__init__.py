"""Recipes by name: functions that return a run or a chain of runs. First lines of docstrings are summaries.

    corl.py        CoRL: unified and refined stages, its other paradigms and rewards
    unirl.py       UniRL: self-improvement by GRPO and by SFT
    unirl_zero.py  UniRL-Zero: six scenarios, with cold starts
    algorithms.py  functions from a run to the same run by another algorithm

To add one: a function that returns a RunConfig, and a line in RECIPES, or in ALGORITHMS of `algorithms.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from unison.config import Chain, RunConfig, pick
from unison.recipes import corl, unirl, unirl_zero

RECIPES: dict[str, Callable[[], RunConfig | Chain]] = {
    "corl/tiny": corl.tiny,
    "corl/tiny-unified": corl.tiny_unified,
    "corl/tiny-draw": corl.tiny_draw,
    "corl/tiny-multiple-choice": corl.tiny_multiple_choice,
    "corl/tiny-open-ended": corl.tiny_open_ended,
    "corl/tiny-cold-start": corl.tiny_cold_start,
    "corl/tiny-separate": corl.tiny_separate,
    "corl/tiny-cycle": corl.tiny_cycle,
    "corl/tiny-rewards-cycle": corl.tiny_rewards_cycle,
    "corl/tiny-rewards-matching": corl.tiny_rewards_matching,
    "corl/tiny-rewards-both": corl.tiny_rewards_both,
    "corl/janus-pro-1b": corl.janus_pro_1b,
    "corl/janus-pro-1b-unified": corl.janus_pro_1b_unified,
    "corl/janus-1.3b": corl.janus_1_3b,
    "corl/janus-1.3b-unified": corl.janus_1_3b_unified,
    "corl/janus-pro-7b": corl.janus_pro_7b,
    "corl/janus-pro-7b-unified": corl.janus_pro_7b_unified,
    "unirl/tiny-janus-grpo": unirl.tiny_janus_grpo,
    "unirl/tiny-janus-sft": unirl.tiny_janus_sft,
    "unirl/tiny-janus-sft-split": unirl.tiny_janus_sft_split,
    "unirl/tiny-showo-grpo": unirl.tiny_showo_grpo,
    "unirl/tiny-showo-sft": unirl.tiny_showo_sft,
    "unirl/tiny-showo-sft-split": unirl.tiny_showo_sft_split,
    "unirl/janus-pro-1b-grpo": unirl.janus_pro_1b_grpo,
    "unirl/janus-pro-1b-sft": unirl.janus_pro_1b_sft,
    "unirl/janus-pro-1b-sft-split": unirl.janus_pro_1b_sft_split,
    "unirl/show-o-512-grpo": unirl.show_o_512_grpo,
    "unirl/show-o-512-sft": unirl.show_o_512_sft,
    "unirl/show-o-256-grpo": unirl.show_o_256_grpo,
    "unirl/show-o-256-sft": unirl.show_o_256_sft,
    "unirl-zero/tiny-text": unirl_zero.tiny_text,
    "unirl-zero/tiny-reasoning": unirl_zero.tiny_reasoning,
    "unirl-zero/tiny-draw": unirl_zero.tiny_draw,
    "unirl-zero/tiny-jpeg-compressible": unirl_zero.tiny_jpeg_compressible,
    "unirl-zero/tiny-jpeg-incompressible": unirl_zero.tiny_jpeg_incompressible,
    "unirl-zero/tiny-edit": unirl_zero.tiny_edit,
    "unirl-zero/tiny-think": unirl_zero.tiny_think,
    "unirl-zero/tiny-reflect": unirl_zero.tiny_reflect,
    "unirl-zero/text": unirl_zero.text,
    "unirl-zero/reasoning": unirl_zero.reasoning,
    "unirl-zero/draw": unirl_zero.draw,
    "unirl-zero/jpeg-compressible": unirl_zero.jpeg_compressible,
    "unirl-zero/jpeg-incompressible": unirl_zero.jpeg_incompressible,
    "unirl-zero/edit": unirl_zero.edit,
    "unirl-zero/think": unirl_zero.think,
    "unirl-zero/reflect": unirl_zero.reflect,
}
DEFAULT = "corl/tiny-unified"
"""The recipe whose fields `unison train --help` lists."""


def find(name: str) -> Callable[[], RunConfig | Chain]:
    """The recipe of that name.

    Raises:
        ValueError: unknown name.
    """
    return pick(RECIPES, name, "recipe")


def summary(name: str) -> str:
    """One line on a recipe."""
    return (find(name).__doc__ or "").strip().splitlines()[0]
