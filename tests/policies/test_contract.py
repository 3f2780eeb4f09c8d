"""The contract of a family: what is sampled is what is scored, whatever the batch, and the rest that callers rely on.

A new family passes by an entry in contract.FAMILIES.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

import pytest
import torch
from torch import Tensor

from tests.policies.contract import (
    CLOSE,
    FAMILIES,
    LONG,
    OTHER,
    PICTURE,
    READ,
    SHORT,
    TEXT,
    Family,
    Subject,
    act,
    apart,
    assert_same_gradients,
    assert_same_scores,
    counted,
    decided,
    far,
    gap,
    gradients,
    gradients_of,
    groups,
    nll,
    perturb,
    same_action,
    same_weights,
    trained_of,
)
from unison.config import PolicyConfig
from unison.policies import load_policy
from unison.policies.base import Policy
from unison.policies.decoding.masked import masked_once_more
from unison.types import Action, Context, Latents, Modality, Relaxed, Sampling, Tokens

REPO = Path(__file__).resolve().parents[2]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
ABILITIES = ("write", "draw", "edit", "relax drawings", "mask drawings anew", "denoise drawings")
modalities = pytest.mark.parametrize("modality", MODALITIES)


@pytest.fixture(scope="session", params=FAMILIES, ids=lambda family: family.name)
def subject(request: pytest.FixtureRequest) -> Subject:
    return Subject(request.param, request.getfixturevalue(request.param.make))


# -- replayed log-probability equals the sampled one ---------------------------------------------------------------


@pytest.mark.parametrize("weights", ["policy", "adapted"])
def test_replayed_log_probability_equals_the_sampled_one(subject: Subject, weights: str) -> None:
    policy: Policy = getattr(subject, weights)
    for case, (modality, sampling) in subject.samplings.items():
        contexts = subject.groups(policy, modality)
        actions = act(policy, modality, contexts, sampling)
        with torch.no_grad():
            assert gap(policy(contexts, actions), actions) < CLOSE, case


@modalities
def test_replay_holds_for_each_kind_of_context_alone(subject: Subject, modality: Modality) -> None:
    policy = subject.policy
    kinds = subject.contexts(policy, modality)
    short = kinds["prompt"]
    for name in set(kinds) & {
        "prompt",
        "prompt of the same length",
        "long prompt",
        "own reply",
        "pictures",
        "own drawing",
    }:
        batch = groups([short] if name == "prompt" else [kinds[name], short])
        actions = act(policy, modality, batch, subject.two(modality))
        with torch.no_grad():
            assert gap(policy(batch, actions), actions) < CLOSE, name


def test_samples_are_neither_constant_nor_uniform(subject: Subject) -> None:
    """Else the tests above would hold for trivial reasons."""
    contexts = [Context((SHORT,))] * 6
    for modality in MODALITIES:
        actions = act(subject.policy, modality, contexts, subject.two(modality))
        one, two = (decided(action)[0] for action in actions[:2])
        assert one.shape != two.shape or far([one], [two]) > 0.3
        if isinstance(actions[0], Tokens):
            surprise, choices = (
                -torch.cat([action.logp for action in actions]).mean(),
                64 if modality == "image" else 512,
            )
            assert 0.05 < surprise < 0.9 * torch.log(torch.tensor(choices))
            assert len({tuple(action.ids.tolist()) for action in actions}) == 6
        else:
            ends = torch.stack([action.path[-1] for action in actions])
            assert (ends[1:] - ends[:1]).abs().mean() > 0.3


def test_every_part_of_a_context_matters(subject: Subject) -> None:
    policy, (drawing, reply) = subject.policy, subject.own(subject.policy)
    others = [Context((OTHER, SHORT)), Context((PICTURE, LONG)), Context((PICTURE,)), Context((SHORT,))]
    if subject.family.picture_keeps_its_place:
        others.append(Context((SHORT, PICTURE)))
    known = {("text", Context((PICTURE, SHORT))): others}
    others = [Context((LONG,)), Context((SHORT,), unconditional=True), Context((SHORT, reply))]
    if subject.family.draws_from_pictures:
        others.append(Context((PICTURE, SHORT)))
        edits = [Context((OTHER, SHORT)), Context((PICTURE, LONG)), Context((drawing, SHORT))]
        known["image", Context((PICTURE, SHORT))] = edits
    known["image", Context((SHORT,))] = others
    for (modality, context), changed in known.items():
        action = act(policy, cast(Modality, modality), [context], subject.two(cast(Modality, modality)))
        for other in changed:
            assert gap(policy([other], action), action) > 0.01, (modality, context.parts, other.parts)


def test_adapters_change_the_policy(subject: Subject) -> None:
    for modality in MODALITIES:
        actions = act(subject.policy, modality, [Context((SHORT,))], subject.two(modality))
        assert gap(subject.adapted([Context((SHORT,))], actions), actions) > 0.1


def test_scoring_the_conditional_branch_differs_from_scoring_the_guided_one(subject: Subject) -> None:
    contexts, guided = [Context((SHORT,))], subject.guided
    (one,) = subject.policy.draw(contexts, guided, [0])
    (two,) = subject.policy.draw(contexts, replace(guided, score_conditional=True), [0])
    assert all(map(torch.equal, decided(one), decided(two)))  # the sample is guided all the same
    assert (one.logp - two.logp).abs().max() > subject.family.visible


def test_actions_of_all_kinds_are_scored_in_the_given_order(subject: Subject) -> None:
    policy, one, two = subject.policy, Context((SHORT,)), Context((PICTURE, LONG))
    three = two if subject.family.draws_from_pictures else Context((LONG,))
    contexts = [one, two, three, one, two, one]
    actions = [
        *policy.draw([one], subject.guided, [1]),
        *policy.write([two], TEXT, [2]),
        *policy.draw([three], subject.family.drawings["plain"], [3]),
        *policy.write([one], TEXT, [4]),
        *policy.write([two], TEXT, [5]),
        *policy.draw([one], subject.guided, [6]),
    ]
    assert gap(policy(contexts, actions), actions) < CLOSE


def test_an_action_carries_what_replay_needs(subject: Subject) -> None:
    drawing, reply = subject.own(subject.policy)
    assert len(drawing) == subject.family.decisions
    assert len(reply) <= 6
    assert reply.order.tolist() == list(range(len(reply)))
    assert drawing.sampling == subject.guided
    for action in (drawing, reply):
        assert len(action) == len(action.logp) == len(action.mask)
        assert action.logp.dtype == torch.float32
        assert not action.logp.requires_grad
        assert action.mask.all()
        if isinstance(action, Tokens):
            assert action.ids.dtype == action.order.dtype == torch.int64
            assert action.order.unique().tolist() == list(range(int(action.order.max()) + 1))
        else:
            assert isinstance(action, Latents)
            assert action.path.dtype == torch.float32
            assert len(action.path) == len(action.sigmas) == len(action) + 1
            assert (action.sigmas.diff() < 0).all()
            assert action.sigmas[[0, -1]].tolist() == [1, 0]


def test_a_reply_ends_with_its_first_end_of_sentence(subject: Subject) -> None:
    policy, stop = subject.make(), subject.tokenizer.eos_token_id
    with torch.no_grad():
        subject.family.head(policy).weight[stop] *= 3  # it comes up often, at different places
    contexts = [Context((SHORT,))] * 12
    samplings = Sampling(max_tokens=20), Sampling(max_tokens=20, temperature=2.0)
    replies = [reply for sampling in samplings for reply in policy.write(contexts, sampling, range(12))]
    lengths = {len(reply) for reply in replies}
    assert len(lengths) > 2, lengths
    for reply in replies:
        assert stop not in reply.ids[:-1]
        assert len(reply) == 20 or reply.ids[-1] == stop
    assert gap(policy(contexts * 2, replies), replies) < CLOSE


# -- batches: shared prefixes, no cross-talk -----------------------------------------------------------------------


@modalities
def test_siblings_that_share_a_context_equal_separate_rows(subject: Subject, modality: Modality) -> None:
    policy = subject.policy
    shared = subject.groups(policy, modality)
    actions = act(policy, modality, shared, subject.two(modality))
    assert_same_scores(policy, policy(shared, actions), policy(apart(shared), actions))


@modalities
@pytest.mark.parametrize("case", ["plain", "cool"])
def test_a_batch_scores_as_one_row_at_a_time(subject: Subject, modality: Modality, case: str) -> None:
    policy = subject.make() if subject.family.double else subject.policy
    if subject.family.double:  # weights so large lose four digits in a gradient that has come through two models
        policy.network.double()
    sampling = subject.two(modality) if case == "plain" else replace(subject.two(modality), temperature=0.7)
    pictured = modality == "text" or subject.family.draws_from_pictures
    contexts = groups([Context((PICTURE, SHORT) if pictured else (SHORT,)), Context((LONG,))], 3)
    actions = act(policy, modality, contexts, sampling)
    together = policy(contexts, actions)
    alone = [policy([Context(c.parts)], [a])[0] for c, a in zip(contexts, actions, strict=True)]
    assert_same_scores(policy, together, alone, share=1e-5 if subject.family.double else CLOSE)


def test_a_shared_context_is_computed_once(subject: Subject) -> None:
    policy, family = subject.policy, subject.family
    contexts = groups([Context((SHORT,)), Context((LONG,))], 4)
    with counted(policy.decoder) as sampled:
        drawings = policy.draw(contexts, subject.guided, range(8))
    with counted(policy.decoder) as scored:
        policy(contexts, drawings)
    for first, *others in (sampled, scored):
        assert first == family.prompts
        assert family.prompts not in others
    contexts = groups([Context((PICTURE, SHORT)), Context((OTHER, SHORT))], 4)
    with counted(family.eyes(policy)) as rows:
        policy(contexts, policy.write(contexts, TEXT, range(8)))
    assert rows == [2 * family.seen_rows] * 2


@modalities
def test_swapping_items_swaps_their_samples(subject: Subject, modality: Modality) -> None:
    contexts = subject.groups(subject.policy, modality)
    seeds = list(range(len(contexts)))
    sample = subject.policy.write if modality == "text" else subject.policy.draw
    there = sample(contexts, subject.two(modality), seeds)
    back = sample(contexts[::-1], subject.two(modality), seeds[::-1])
    assert all(same_action(a, b) for a, b in zip(there, back[::-1], strict=True))


@pytest.mark.parametrize("case", ["text", "plain", "guided"])
def test_a_sample_depends_on_its_context_and_seed_alone(subject: Subject, case: str) -> None:
    modality, sampling = subject.samplings[case]
    contexts = subject.groups(subject.policy, modality)
    together = act(subject.policy, modality, contexts, sampling)
    for row in range(0, len(contexts), 3):
        (alone,) = act(subject.policy, modality, [contexts[row]], sampling, first_seed=row)
        assert same_action(alone, together[row]), row


def test_sampling_leaves_the_global_generator_alone(subject: Subject) -> None:
    before = torch.random.get_rng_state()
    subject.own(subject.policy)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("case", ["text", "plain", "guided"])
def test_gradient_checkpointing_changes_neither_values_nor_gradients(subject: Subject, case: str) -> None:
    (modality, sampling), contexts = subject.samplings[case], groups([Context((SHORT,)), Context((LONG,))])
    found = []
    for choice in ("never", "always"):
        policy = subject.make(gradient_checkpointing=choice)
        actions = act(policy, modality, contexts, replace(sampling, max_tokens=6))
        logps = policy(contexts, actions)
        found.append((logps, gradients_of(policy, torch.cat(logps).sum())))
    (kept, one), (again, two) = found
    assert far(kept, again) < 1e-5
    assert_same_gradients(one, two, share=1e-5)


def test_texts_written_a_few_at_a_time_are_those_written_at_once(subject: Subject) -> None:
    contexts = groups([Context(("a",)), Context(("a red circle",))])
    at_once, few = (
        subject.make(rows_writing=width).write(contexts, Sampling(max_tokens=10), range(4)) for width in (0, 2)
    )
    assert all(same_action(one, other) for one, other in zip(at_once, few, strict=True))


# -- text and pictures ---------------------------------------------------------------------------------------------


def test_text_survives_encoding_and_decoding(subject: Subject) -> None:
    texts = ["<think> red circle top left </think><answer> B </answer>", "four", "Ünïcode, too!", SHORT]
    replies = subject.policy.encode(texts)
    assert subject.policy.decode(replies) == texts
    assert all(reply.ids[-1] == subject.tokenizer.eos_token_id for reply in cast("list[Tokens]", replies))


def test_decoding_keeps_the_order_of_texts_and_pictures(subject: Subject) -> None:
    (drawing, _), reply = subject.own(subject.policy), subject.policy.encode(["four"])[0]
    first, text, second = subject.policy.decode([drawing, reply, drawing])
    assert text == "four"
    assert first.size == second.size == PICTURE.size
    assert first.mode == "RGB"
    assert first.tobytes() == second.tobytes()


def test_what_is_drawn_to_encode_a_picture_follows_from_its_seed_alone(subject: Subject) -> None:
    (one, other), encode = subject.policy.encode([OTHER, OTHER], [5, 6]), subject.policy.encode
    torch.manual_seed(123)  # the global generator plays no part
    again, _ = encode([OTHER, OTHER], [5, 4])
    for first, second, same in ((one, again, True), (one, other, subject.policy.family == "janus")):
        tensors = [(x, getattr(second, name)) for name, x in vars(first).items() if isinstance(x, Tensor)]
        assert all(torch.equal(x, y) for x, y in tensors) is same  # Janus has one action for a picture


def test_a_picture_becomes_an_action_that_is_scored_and_decoded(subject: Subject) -> None:
    torch.manual_seed(0)
    reply, drawing = subject.policy.encode(["four", OTHER])
    assert subject.policy.encode([drawing, reply]) == [drawing, reply]
    logps = subject.policy([Context((LONG,))] * 2, [drawing, reply])
    assert (logps[0][drawing.mask] < 0).all()
    assert [picture.size for picture in subject.policy.decode([drawing])] == [OTHER.size]


def test_a_hidden_prompt_has_no_influence(subject: Subject) -> None:
    texts = "a red circle", "a red square"  # of one length
    drawings = subject.policy.draw([Context(("a",))] * 2, subject.family.drawings["plain"], [5, 5])
    seen = subject.policy([Context((text,)) for text in texts], drawings)
    hidden = subject.policy([Context((text,), unconditional=True) for text in texts], drawings)
    assert (seen[0] - seen[1]).abs().max() > subject.family.visible
    assert (hidden[0] - hidden[1]).abs().max() < 1e-5


def test_hidden_states_are_of_the_picture_and_the_texts_own_tokens_whatever_the_batch(subject: Subject) -> None:
    policy = subject.policy
    for together, (picture, text) in zip(policy.hidden_states(*zip(*READ, strict=True)), READ, strict=True):
        ((seen, read),) = policy.hidden_states([picture], [text])
        assert len(seen) == subject.family.image_tokens
        asked = subject.family.before_text + text.strip()
        assert len(read) == len(subject.tokenizer.encode(asked, add_special_tokens=False))
        assert far([seen, read], together) < CLOSE
    assert [len(states) for states in policy.hidden_states([PICTURE], [" "])[0]] == [subject.family.image_tokens, 0]


# -- the reference, and what is trained ----------------------------------------------------------------------------

COPY_OR_ADAPTERS = pytest.mark.parametrize("adapts", [False, True], ids=["copy", "adapters"])


@COPY_OR_ADAPTERS
def test_the_divergence_is_zero_at_first_and_the_reference_stays(subject: Subject, adapts: bool) -> None:
    policy = subject.make(**subject.family.adapters if adapts else {})
    policy.keep_reference()
    contexts = [Context((SHORT,)), Context((PICTURE, LONG)), Context((LONG,))]
    actions = [*policy.write(contexts[:2], TEXT, [1, 2]), *policy.draw(contexts[2:], subject.guided, [0])]

    def divergence() -> list[Tensor]:
        with policy.reference():
            anchors = policy.anchors(contexts, actions)
        return [kl for _, kl in policy(contexts, actions, anchors)]

    with torch.no_grad():
        start = policy(contexts, actions)
        assert max(kl.abs().max() for kl in divergence()) < 1e-8
        perturb(policy)
        trained = policy(contexts, actions)
        assert all(far([a], [b]) > subject.family.visible for a, b in zip(start, trained, strict=True))
        assert all((kl >= 0).all() and kl.max() > 1e-6 for kl in divergence())
        with policy.reference():
            assert far(policy(contexts, actions), start) < 1e-5
        assert far(policy(contexts, actions), trained) < 1e-5


@COPY_OR_ADAPTERS
def test_an_error_inside_the_reference_still_brings_the_policy_back(subject: Subject, adapts: bool) -> None:
    policy = subject.make(**subject.family.adapters if adapts else {})
    policy.keep_reference()
    perturb(policy)
    before = nll(policy, [Context((SHORT,))], ["four"])

    def fail() -> None:
        with policy.reference():
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (nll(policy, [Context((SHORT,))], ["four"]) - before).abs() < 1e-5


def test_the_trained_weights_still_train_after_the_reference_was_used(subject: Subject) -> None:
    policy = subject.make()
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.01)
    policy.keep_reference()
    anchor = torch.tensor(0.0)
    for _ in range(2):
        with torch.no_grad(), policy.reference():
            anchor = nll(policy, [Context((SHORT,))], ["four"])
        loss = nll(policy, [Context((SHORT,))], ["four"])
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    assert nll(policy, [Context((SHORT,))], ["four"]) < anchor


def test_a_policy_without_a_reference_says_so(subject: Subject) -> None:
    with pytest.raises(RuntimeError, match=r"keep_reference\(\)"):
        subject.policy.reference()


def test_frozen_patterns_freeze_what_they_name_and_nothing_else(subject: Subject) -> None:
    import re

    patterns, before = subject.family.frozen, trained_of(subject.policy)
    frozen = {name for name in before if any(re.search(pattern, name) for pattern in patterns)}
    assert frozen
    assert trained_of(subject.make(frozen=patterns)).keys() == before.keys() - frozen


def test_adapters_alone_are_trained(subject: Subject) -> None:
    policy = subject.adapted
    assert all("lora_" in name for name in trained_of(policy))
    actions = [*policy.draw([Context((SHORT,))], subject.guided, [0]), *policy.encode(["four"])]
    logps = policy([Context((SHORT,)), Context((PICTURE, LONG))], actions)
    found = gradients(policy, logps)
    assert found.keys() <= trained_of(policy).keys()
    assert any(gradient.any() for gradient in found.values())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frozen": ("visoin",)}, r"policy.frozen pattern 'visoin' matches no parameter; modules are .*"),
        ({"frozen": (".",)}, "policy.frozen .* freezes every parameter"),
        ({"lora_rank": 4, "lora_targets": "nothing"}, "policy.lora_targets = 'nothing'"),
    ],
)
def test_a_pattern_that_selects_nothing_is_refused(subject: Subject, fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        subject.make(**fields)


def test_what_a_family_cannot_do_is_refused(subject: Subject) -> None:
    policy = subject.policy
    assert {"write", "draw"} <= policy.abilities <= set(ABILITIES)
    known = ", ".join(sorted(policy.abilities))
    for verb in set(ABILITIES) - policy.abilities:
        with pytest.raises(ValueError, match=f"this needs a model that can {verb}, .* family can only {known}"):
            policy.require(verb, "this")
    for name, (call, message) in subject.family.refusals.items():
        with pytest.raises(ValueError, match=message):
            pytest.fail(f"{name} was not refused: {call(policy)}")
    if not policy.packs:
        with pytest.raises(ValueError, match=r"policy.attention = 'flex': .* take 'sdpa'"):
            subject.make(attention="flex")


# -- other numbers, other devices ----------------------------------------------------------------------------------


def test_bfloat16_matrix_products_run_and_train(subject: Subject) -> None:
    policy = subject.make(compute_dtype="bfloat16")
    contexts = groups([Context((SHORT,)), Context((PICTURE, LONG))])
    actions = [*policy.draw(contexts[:2], subject.guided, [0, 1]), *policy.write(contexts[2:], TEXT, [2, 3])]
    logps = policy(contexts, actions)
    assert all(logp.dtype == torch.float32 for logp in logps)
    assert gap(logps, actions) < 0.5
    found = gradients(policy, logps)
    assert found
    assert all(g.isfinite().all() and g.dtype == torch.float32 for g in found.values())


ON_A_SECOND_DEVICE = """
import sys, torch
from tests.devices import second
from unison.config import PolicyConfig
from unison.policies import load_policy
from unison.types import Context, Sampling

for path in sys.argv[1:]:
    policy, contexts, found = load_policy(PolicyConfig(path)), [Context(("a red circle",))] * 2, []
    for device in ("cpu", second.DEVICE):
        policy.network.to(device)
        image = Sampling(guidance=2.0, rounds=3, steps=3)
        actions = [*policy.write(contexts, Sampling(max_tokens=5), [1, 2]), *policy.draw(contexts, image, [3, 4])]
        logps = policy(contexts * 2, actions)
        torch.cat(logps).sum().backward()
        assert max((p.detach().cpu() - a.logp).abs().max() for p, a in zip(logps, actions)) < 1e-4
        policy.decode(actions)
        found.append([getattr(action, "ids", action.logp) for action in actions])
        policy.zero_grad()
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*found)), path
"""


def test_every_verb_runs_on_a_second_device() -> None:
    """In a process of its own, since the device cannot be taken out again."""
    paths = filter(None, (family.on_a_second_device for family in FAMILIES))
    command = [sys.executable, "-c", ON_A_SECOND_DEVICE, *paths]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


# -- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def saved(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / subject.policy.family
    folder.mkdir()
    subject.policy.save(folder)
    return folder


def test_a_saved_policy_loads_as_it_was(subject: Subject, saved: Path) -> None:
    loaded = load_policy(PolicyConfig(str(saved)))
    assert same_weights(loaded.network.state_dict(), subject.policy.network.state_dict())
    for modality, sampling in subject.samplings.values():
        pictured = modality == "text" or subject.family.draws_from_pictures
        contexts = [Context((PICTURE, SHORT) if pictured else (SHORT,)), Context((LONG,))]
        ours, theirs = (act(policy, modality, contexts, sampling) for policy in (subject.policy, loaded))
        assert all(same_action(a, b, 1e-5) for a, b in zip(ours, theirs, strict=True))


def test_a_saved_policy_is_read_by_the_libraries_it_is_written_for(subject: Subject, saved: Path) -> None:
    plain, own = subject.family.plain(saved), subject.policy.network.state_dict()
    assert {name: w for name, w in own.items() if name not in plain and not name.startswith("mm_projector")} == {}
    assert all(torch.equal(weight, own[name]) for name, weight in plain.items())


def test_adapters_are_merged_on_saving_and_stay_in_the_policy(subject: Subject, tmp_path: Path) -> None:
    policy = subject.make(**subject.family.adapters)
    perturb(policy, 0.02)
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    policy.save(tmp_path / "merged")
    assert same_weights(policy.state_dict(), before)
    merged = load_policy(PolicyConfig(str(tmp_path / "merged")))
    assert not any("lora" in name for name in merged.network.state_dict())
    for modality in MODALITIES:
        (one,), (two,) = (act(p, modality, [Context((SHORT,))], subject.two(modality)) for p in (policy, merged))
        assert same_action(one, two, 1e-3 if subject.family.double else CLOSE)


def test_a_checkpoint_in_bfloat16_writes_draws_and_trains(subject: Subject, saved: Path) -> None:
    policy = load_policy(PolicyConfig(str(saved), dtype="bfloat16", compute_dtype="bfloat16"))
    contexts = [Context((PICTURE, SHORT)), Context((LONG,))]
    actions: list[Action] = [*policy.write(contexts[:1], TEXT, [1]), *policy.draw(contexts[1:], subject.guided, [0])]
    logps = policy(contexts, actions)
    assert all(logp.dtype == torch.float32 and logp.isfinite().all() for logp in logps)
    torch.cat(logps).sum().backward()
    assert all(p.grad.isfinite().all() for p in policy.parameters() if p.grad is not None)


# -- relaxed drawings ----------------------------------------------------------------------------------------------

PROMPTS = (Context(("a red circle",)), Context(("two blue squares",)))
QUESTION = "What color is the circle?"
RELAXED = {
    "plain": Sampling(),
    "guided": Sampling(guidance=2.0, temperature=0.8),
    "guided, conditional logits": Sampling(guidance=2.0, score_conditional=True),
}


@pytest.fixture(params=["policy", "adapted"])
def relaxing(request: pytest.FixtureRequest, subject: Subject) -> tuple[Family, Policy]:
    """A family that relaxes drawings, and a policy of it."""
    assert bool(subject.family.relaxed) == ("relax drawings" in subject.policy.abilities)
    if request.param not in subject.family.relaxed:
        pytest.skip(f"{subject.family.name}, {request.param}: relaxes no drawings here")
    return subject.family, getattr(subject, request.param)


def drawings(policy: Policy, sampling: Sampling) -> list[Tokens]:
    return cast("list[Tokens]", policy.draw(PROMPTS, sampling, [1, 2]))


def relaxed(policy: Policy, sampling: Sampling, temperature: float = 1.0, whole: bool = False) -> list[Context]:
    """The question about each drawing, relaxed; with `whole` through the canvas of its first round, all masked."""
    return [
        Context((Relaxed(prompt, drawing, temperature, first_rounds(drawing)[0] if whole else seed), QUESTION))
        for seed, (prompt, drawing) in enumerate(zip(PROMPTS, drawings(policy, sampling), strict=True))
    ]


def first_rounds(drawing: Tokens) -> list[int]:
    """Seeds whose canvas is that of the drawing's first round."""
    return [seed for seed in range(2000) if masked_once_more(drawing.order, seed).all()]


def hard(policy: Policy, sampling: Sampling) -> list[Context]:
    """The question about each drawing as it is, which cuts the gradient's path."""
    return [Context((drawing, QUESTION)) for drawing in drawings(policy, sampling)]


def answer_gradients(policy: Policy, contexts: list[Context]) -> tuple[Tensor, dict[str, Tensor]]:
    """The answers' negative log-likelihood, and its gradient, zeros where nothing depends on a weight."""
    loss = nll(policy, contexts, ["red"] * len(contexts))
    found = gradients_of(policy, (torch.linspace(1, 2, len(loss)) * loss).sum())
    return loss, {name: found.get(name, torch.zeros_like(p)) for name, p in trained_of(policy).items()}


@pytest.mark.parametrize("case", RELAXED)
def test_a_relaxed_drawing_reads_as_the_drawing_itself(relaxing: tuple[Family, Policy], case: str) -> None:
    _, policy = relaxing
    with torch.no_grad():
        expected = nll(policy, hard(policy, RELAXED[case]), ["red"] * 2)
        for whole in (False, True):
            found = nll(policy, relaxed(policy, RELAXED[case], whole=whole), ["red"] * 2)
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("case", RELAXED)
def test_the_answers_gradient_reaches_the_drawing_side_and_vanishes_where_the_path_is_cut(
    relaxing: tuple[Family, Policy], case: str
) -> None:
    family, policy = relaxing
    _, through = answer_gradients(policy, relaxed(policy, RELAXED[case], whole=True))
    largest = max(g.abs().max() for g in through.values())
    side = family.drawing_side(policy, through)
    assert side
    for name, gradient in side.items():
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 1e-6 * largest, name
    _, cut = answer_gradients(policy, hard(policy, RELAXED[case]))
    assert not any(gradient.any() for gradient in family.drawing_side(policy, cut).values())


def test_each_drawing_is_relaxed_by_itself(relaxing: tuple[Family, Policy]) -> None:
    """Batches of one and of both, of two samplings and temperatures, give the same gradients."""
    family, policy = relaxing
    one = relaxed(policy, RELAXED["plain"])[0]
    two = relaxed(policy, RELAXED["guided"], temperature=0.5)[1]
    loss, together = answer_gradients(policy, [one, two])
    losses, alone = zip(*(answer_gradients(policy, [context]) for context in (one, two)), strict=True)
    torch.testing.assert_close(loss, torch.cat(losses))
    sides = [family.drawing_side(policy, found) for found in alone]
    for name, gradient in family.drawing_side(policy, together).items():
        expected = sides[0][name] + 2 * sides[1][name]
        assert (expected - gradient).abs().max() <= 1e-3 * gradient.abs().max(), name
    backwards, _ = answer_gradients(policy, [two, one])
    torch.testing.assert_close(backwards, loss.flip(0))


def test_the_seed_is_the_noise(relaxing: tuple[Family, Policy]) -> None:
    family, policy = relaxing
    prompt, drawing = PROMPTS[0], drawings(policy, Sampling())[0]
    one, other_seed = first_rounds(drawing)[:2]  # of one canvas
    found = [
        answer_gradients(policy, [Context((Relaxed(prompt, drawing, 1.0, seed), QUESTION))])[1]
        for seed in (one, one, other_seed)
    ]
    same, again, other = (next(iter(family.drawing_side(policy, gradient).values())) for gradient in found)
    torch.testing.assert_close(again, same)
    assert (other - same).abs().max() > 1e-3 * same.abs().max()
