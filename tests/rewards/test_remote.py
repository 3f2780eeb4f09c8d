"""Rewards on servers: what arrives is what was sent, what fails says so, and a server that dies is waited for."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import uvicorn
from PIL import Image

from tests.rewards import judge_and_weigh
from unison.config import RemoteConfig, RunConfig, ServeConfig
from unison.recipes import corl
from unison.rewards import REWARDS, load_rewards
from unison.rewards.remote import wire
from unison.rewards.remote.ahead import Ahead
from unison.rewards.remote.client import REQUESTS, ROWS, TOKEN, RemoteReward
from unison.rewards.remote.http import ClientError
from unison.rewards.remote.server import build, load, serve
from unison.training.trainer import Trainer
from unison.types import Clause, Item, RewardFn, Trajectory, Wanted
from unison.world.render import render
from unison.world.scene import Object

REPO = Path(__file__).resolve().parents[2]
SQUARE = render((Object("square", "blue", 1, 1),))
PLENTY = ServeConfig()
QUICK = RemoteConfig(timeout=10, patience=5)
Start = Callable[..., str]


def drawn(prompt: str, *images: Image.Image) -> list[Trajectory]:
    item = Item("x", prompt=prompt)
    return [Trajectory(item, (), images=(image,)) for image in images]


def said(*replies: str) -> list[Trajectory]:
    return [Trajectory(Item("x", answer="red"), (), texts=(reply,)) for reply in replies]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def start() -> Iterator[Start]:
    """Serves rewards in this process; returns the address of the first."""
    servers: list[tuple[uvicorn.Server, threading.Thread]] = []

    def begin(config: ServeConfig = PLENTY, **rewards: RewardFn) -> str:
        port = free_port()
        server = uvicorn.Server(uvicorn.Config(build(rewards, config), port=port, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        servers.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{port}/{next(iter(rewards))}"

    yield begin
    for server, thread in servers:
        server.should_exit = server.force_exit = True
        thread.join(10)


def remote(address: str, config: RemoteConfig = QUICK, rows: int = ROWS, workers: int = REQUESTS) -> RemoteReward:
    return replace(replace(RemoteReward.parse(address, config), rows=rows, workers=workers).checked(), backoff=0.01)


def length(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """A tenth of the last reply's length; None where there is none."""
    return [len(t.texts[-1]) / 10 if t.texts else None for t in trajectories]


# -- what is sent ------------------------------------------------------------------------------------------------------


def test_what_arrives_is_what_was_sent_but_for_the_turns() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 9, 7, 3), np.uint8)
    real, drawing = map(Image.fromarray, pixels)
    wanted = Wanted("position", (Clause("cat", 2), Clause("dog", 1, "red", ("left of", 0))), (Clause("cow"),))
    captions = ("before", "after", drawing, "back")
    item = Item("a", "draw", real, 'ask\n"ü"', "yes", "<answer>", *captions, "multiple_choice", "colors", wanted)
    sent = [Trajectory(item, (), ("one", "two"), (real, drawing)), Trajectory(item, ()), Trajectory(Item("b"), ())]
    got = wire.read(wire.write(sent))
    assert got[0].item is got[1].item, "siblings have one item"
    for a, b in zip(sent, got, strict=True):
        assert b.texts == a.texts
        assert [np.asarray(x).tolist() for x in b.images] == [np.asarray(x).tolist() for x in a.images]
        same = [f.name for f in fields(Item) if getattr(a.item, f.name) == getattr(b.item, f.name)]
        assert {f.name for f in fields(Item)} - {*same} <= {"image", "target_image"}
    assert np.array_equal(np.asarray(got[0].item.image), pixels[0])
    assert np.array_equal(np.asarray(got[0].item.target_image), pixels[1])


def test_every_field_of_an_item_is_sent() -> None:
    assert {*wire.SentItem.model_fields} == {f.name for f in fields(Item)}


def test_the_size_of_a_request_is_foreseen_from_above() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8))
    item = Item(
        "ü" * 50, prompt="\x00" * 50, image=noise, wanted=Wanted("t", (Clause("cat", 1, "red", ("on", 0)),) * 9)
    )
    row = Trajectory(item, (), ("\x01" * 99,), (noise, SQUARE))
    assert len(wire.write([row])) < wire.size(row) + wire.item_size(item)


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["world", "format", "jpeg_kilobytes", "mse"])
def test_values_equal_those_of_the_reward_itself(name: str, start: Start) -> None:
    (reward,) = load_rewards([name]).values()
    items = [Item(str(i), prompt="a blue square", image=SQUARE) for i in range(3)]
    pictures = [SQUARE, render((Object("circle", "red", 0, 0),))]
    rows = [Trajectory(item, (), ("<think>a</think><answer>b</answer>",), (p,)) for item in items for p in pictures]
    rows.append(Trajectory(items[0], ()))
    values = remote(start(**{name: reward}), rows=2)(rows, None)
    assert values == reward(rows, None)
    assert values[-1] is None, "what cannot be judged travels as null"
    assert len({*values}) > 1 or name == "format"


def test_requests_that_wait_are_judged_together_and_keep_their_order(start: Start) -> None:
    sizes: list[int] = []

    def slow(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
        sizes.append(len(trajectories))
        time.sleep(0.05)
        return length(trajectories, policy)

    reward = remote(start(ServeConfig(batch=8), slow=slow), rows=1)
    rows = said(*("x" * i for i in range(40)))
    assert reward(rows, None) == [i / 10 for i in range(40)]
    assert sum(sizes) == 40
    assert 1 < max(sizes) <= 8


def test_a_bad_request_fails_alone(start: Start) -> None:
    """Its neighbours are judged with it at first, and then without it."""
    (world,) = load_rewards(["world"]).values()
    held = threading.Event()

    def waiting(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
        held.wait(10)
        return world(trajectories, policy)

    address = start(waiting=waiting)
    rows = [drawn("a blue square", SQUARE), drawn("a photo of a cat", SQUARE), drawn("a blue square", SQUARE)]
    answers: dict[int, httpx2.Response] = {}
    threads = [
        threading.Thread(target=lambda i=i: answers.update({i: httpx2.post(address, content=wire.write(rows[i]))}))
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    held.set()
    for thread in threads:
        thread.join()
    assert [answers[i].status_code for i in range(3)] == [200, 500, 200]
    assert (
        "reward 'waiting' failed: ValueError: prompt 'a photo of a cat' is not a sentence"
        in answers[1].json()["detail"]
    )


# -- failures ----------------------------------------------------------------------------------------------------------


def test_a_reward_that_raises_there_stops_the_run_here_with_its_name_at_once(start: Start) -> None:
    def broken(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
        raise ZeroDivisionError("no judge today")

    address = start(broken=broken)
    reward, rows = remote(address), said("a")
    with pytest.raises(ValueError, match=r"reward 'b' failed: .*500: .*'broken' failed: ZeroDivisionError: no judge"):
        judge_and_weigh(rows, {"b": reward}, {"b": 1.0})
    assert reward.counts["attempts"] == 1
    judge_and_weigh(rows, {"b": reward}, {"b": 1.0}, abstain_on_error=("b",))
    assert rows[0].reward is None, "and not 0"


def test_values_that_are_no_numbers_are_an_error(start: Start) -> None:
    address = start(nan=lambda trajectories, policy: [float("nan")] * len(trajectories))
    with pytest.raises(ClientError, match=r"500: .*'nan' failed: .*it returned nan"):
        remote(address)(said("a"), None)


def damaged() -> bytes:
    whole = json.loads(wire.write(drawn("a blue square", SQUARE)))
    picture = base64.b64decode(whole["trajectories"][0]["images"][0])
    whole["trajectories"][0]["images"][0] = base64.b64encode(picture[: len(picture) // 2]).decode()
    return json.dumps(whole).encode()


def huge() -> bytes:
    """A picture whose header alone is sound: 60000 x 60000."""
    header = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (60000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    picture = base64.b64encode(header + b"\0\0\0\0" + bytes(50)).decode()
    return json.dumps({"items": [{"id": "a"}], "trajectories": [{"item": 0, "images": [picture]}]}).encode()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"not json", "the request: Invalid JSON"),
        (b"\x80\x04\x95 a pickle", "the request: Invalid JSON"),
        (b'{"items": []}', "trajectories: Field required"),
        (b'{"items": [{"id": "a"}], "trajectories": [{}]}', "trajectories.0.item: Field required"),
        (b'{"items": [{"id": "a", "hue": 1}], "trajectories": []}', "items.0.hue: Extra inputs are not permitted"),
        (
            b'{"items": [{"id": "a"}], "trajectories": [{"item": 1}]}',
            "trajectories.0.item = 1: the request has 1 items",
        ),
        (
            b'{"items": [{"id": "a", "image": "aGVsbG8="}], "trajectories": []}',
            "items.0.image: the bytes are no picture",
        ),
        (b'{"items": [{"id": "a", "image": "%"}], "trajectories": []}', "items.0.image: Only base64 data is allowed"),
        (damaged(), "trajectories.0.images.0: the picture cannot be read: image file is truncated"),
        (huge(), "trajectories.0.images.0: "),
    ],
)
def test_bad_input_is_refused_with_a_sentence_that_names_the_field(body: bytes, says: str, start: Start) -> None:
    answer = httpx2.post(start(length=length), content=body)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith(says)


def test_100_megabytes_are_refused_and_the_server_goes_on(start: Start) -> None:
    address = start(length=length)
    answer = httpx2.post(address, content=bytes(100_000_000), timeout=60)
    assert answer.status_code == 413
    assert answer.json()["detail"] == "the request has more than 67,108,864 bytes, the most that is read"
    assert remote(address)(said("abc"), None) == [0.3]


def test_what_is_sent_is_cut_to_the_servers_limits_and_what_cannot_be_is_refused(start: Start) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 300, 300, 3), np.uint8)
    calls: list[int] = []

    def count(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
        calls.append(len(trajectories))
        return [0.5] * len(trajectories)

    address = start(ServeConfig(megabytes=1, batch=3), count=count)
    assert remote(address)(drawn("", *map(Image.fromarray, noise)), None) == [0.5] * 8
    assert max(calls) <= 3
    big = Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8))
    with pytest.raises(ClientError, match=r"answered 413: .*raise the server's --megabytes"):
        remote(address)(drawn("", big), None)
    assert httpx2.post(address, content=wire.write(said(*"abcd"))).status_code == 413, "more rows than one call judges"


def test_a_queue_that_is_full_sends_clients_away_until_there_is_room(start: Start) -> None:
    def slow(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
        time.sleep(0.1)
        return length(trajectories, policy)

    address = start(ServeConfig(batch=1, queue=2), slow=slow)
    refusals: list[httpx2.Response] = []
    reward = remote(address, replace(QUICK, patience=60), rows=1, workers=6)
    refusal = reward._refusal
    reward._refusal = lambda response: refusals.append(response) or refusal(response)
    assert reward(said(*("x" * i for i in range(6))), None) == [i / 10 for i in range(6)]
    assert {(r.status_code, r.headers["Retry-After"]) for r in refusals} == {(503, "1")}


def test_a_slow_scorer_is_given_up_after_the_patience_and_what_nobody_waits_for_is_not_judged(start: Start) -> None:
    judged: list[str] = []
    awake = threading.Event()

    def sleepy(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
        judged.extend(t.texts[0] for t in trajectories)
        awake.wait(20)
        return length(trajectories, policy)

    reward = remote(start(sleepy=sleepy), RemoteConfig(timeout=0.3, patience=1))
    begun = time.monotonic()
    with pytest.raises(ClientError, match=r"gave no answer in 0.3 s; is the server overloaded"):
        reward(said("a"), None)
    assert time.monotonic() - begun < 15
    assert reward.counts["attempts"] > 1
    awake.set()
    assert replace(reward, timeout=10, patience=10)(said("b"), None) == [0.1]
    assert judged == ["a", "b"], "the repetitions of the first had been given up by then"


# -- before training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["wrong-token", ""])
def test_a_wrong_token_is_refused_before_training_and_not_repeated(
    token: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN, "right-token")
    address = start(length=length)
    assert remote(address)(said("abc"), None) == [0.3]
    monkeypatch.setenv(TOKEN, token)
    with pytest.raises(ValueError, match=rf"rewards = 'remote:{address}': .*401: .*variable {TOKEN}") as caught:
        load_rewards([f"remote:{address}"])
    assert "-token" not in str(caught.value)
    assert httpx2.post(address, content=wire.write(said("a"))).status_code == 401
    assert httpx2.get(address.replace("length", "health")).json() == {"held": {"length": 0}}


def test_a_server_that_is_not_there_or_lacks_the_reward_is_one_clear_error(start: Start) -> None:
    gone = f"remote:http://127.0.0.1:{free_port()}/world"
    with pytest.raises(ValueError, match=rf"rewards = '{gone}': the reward server .*cannot be reached .*start the"):
        load_rewards([gone], replace(QUICK, patience=0.1))
    other = start(length=length).replace("length", "clip")
    with pytest.raises(ValueError, match=r"answered 404: .*no reward 'clip' here; there are length.*name a reward"):
        load_rewards([f"remote:{other}"])


@pytest.mark.parametrize(
    "address", ["", "http://host:1", "http://host:1/", "host:1/world", "ftp://host/a", "http://h:x/a"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"is no reward on a server: write remote:http://host:port/<reward>"):
        load_rewards([f"remote:{address}"])


def test_another_server_is_recognised(serve_chat: Callable[..., str]) -> None:
    address = serve_chat(lambda asked, headers: (200, {})).partition("/v1")[0]
    with pytest.raises(ValueError, match=r"remote:http.*answered 501"):
        load_rewards([f"remote:{address}/world"], replace(QUICK, patience=0.1))


@pytest.mark.parametrize("name", [name for name, reward in REWARDS.items() if reward.reads_policy])
def test_rewards_that_read_the_policy_are_not_served(name: str) -> None:
    with pytest.raises(ValueError, match=f"serve-reward {name}: it reads the policy that is trained"):
        load([name])


@pytest.mark.parametrize(
    ("specs", "says"),
    [([], "at least one"), (["world", "world"], "two would be /world"), (["wrold"], "did you mean 'world'")],
)
def test_what_cannot_be_served_is_refused(specs: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load(specs)


def test_without_a_token_only_this_machine_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    with pytest.raises(ValueError, match=f"--host 0.0.0.0: others can reach it; put a token into .*{TOKEN}"):
        serve(["world"], ServeConfig(), "0.0.0.0", 8000, 1)


# -- ahead -------------------------------------------------------------------------------------------------------------


def test_a_chunk_is_judged_elsewhere_before_the_next_is_there_and_the_values_are_the_same() -> None:
    judged = threading.Semaphore(0)

    def elsewhere(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
        judged.release()
        return length(trajectories, policy)

    here: list[int] = []

    def local(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
        here.append(len(trajectories))
        return length(trajectories, policy)

    ahead = Ahead({"remote:http://host:1/length": elsewhere, "local": local})
    rows, again = said("a", "bb", "ccc", "dddd"), said("a", "bb", "ccc", "dddd")
    for chunk in (rows[:2], rows[2:]):
        ahead.begin(chunk)
        assert judged.acquire(timeout=10), "while this thread could sample the next chunk"
    assert here == [], "what is computed here waits for the whole rollout"
    weights = dict.fromkeys(ahead.rewards, 1.0)
    assert judge_and_weigh(rows, ahead.finish(), weights) == judge_and_weigh(again, ahead.rewards, weights)
    assert [t.reward for t in rows] == [t.reward for t in again]


# -- whole runs --------------------------------------------------------------------------------------------------------


@contextmanager
def served(port: int, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`unison serve-reward` in a process of its own, killed at the end."""
    command = [sys.executable, "-m", "unison", "serve-reward", *words, "--port", str(port)]
    server = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True, env={**os.environ})
    try:
        yield server
    finally:
        server.kill()
        server.wait()


def await_port(port: int, listens: bool) -> None:
    for _ in range(1200):
        with socket.socket() as probe:
            if (probe.connect_ex(("127.0.0.1", port)) == 0) == listens:
                return
        time.sleep(0.1)
    raise AssertionError(f"a server {'does not start' if listens else 'goes on'}")


def short(out: Path, reward: str, **remote: Any) -> RunConfig:
    """Three steps of the tiny recipe in two chunks each."""
    config = corl.tiny_unified()
    return replace(
        config,
        out=out,
        rewards={reward: 1.0},
        remote=RemoteConfig(**remote),
        step=replace(config.step, items=4, micro_batch_items=2, rollout_items=2),
        optim=replace(config.optim, steps=3, warmup_steps=0),
        scenario=replace(config.scenario, name="t2i", group_size=4),
        evaluation=replace(config.evaluation, items=6, every=0),
        trackers=(),
    )


def lines(run: Path, reward: str) -> list[str]:
    """What is logged of each step, whatever the reward is called."""
    return (run / "metrics.jsonl").read_text().replace(reward, "world").splitlines()


def step_of(run: Path) -> int:
    log = run / "metrics.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.slow
def test_a_run_whose_server_is_killed_and_restarted_waits_and_loses_nothing(tmp_path: Path) -> None:
    local = Trainer(short(tmp_path / "local", "world")).train()
    port = free_port()
    spec, out = f"remote:http://127.0.0.1:{port}/world", tmp_path / "remote"
    with served(port, "world") as first:
        await_port(port, listens=True)
        trainer = Trainer(short(out, spec, patience=300))
        trainer.rewards[spec] = killing(first, port, trainer.rewards[spec], lambda: step_of(out) == 1)
        run = threading.Thread(target=trainer.train)
        run.start()
        first.wait(120)
    assert step_of(out) == 1, "it waits in the second step"
    with served(port, "world"):
        run.join(240)
        assert not run.is_alive()
    assert lines(out, spec) == lines(local, "world"), "every value, loss and gradient is the same"


@pytest.mark.slow
def test_a_run_whose_server_stays_away_stops_with_one_error_and_is_resumed_without_loss(tmp_path: Path) -> None:
    local = Trainer(short(tmp_path / "local", "world")).train()
    port = free_port()
    spec, out = f"remote:http://127.0.0.1:{port}/world", tmp_path / "remote"
    config = short(out, spec, patience=1)
    with served(port, "world", "--workers", "2") as server:
        await_port(port, listens=True)
        trainer = Trainer(config)
        trainer.rewards[spec] = killing(server, port, trainer.rewards[spec], lambda: step_of(out) == 1)
        with pytest.raises(ValueError, match=rf"reward '{spec}' failed: the reward server .*cannot be reached"):
            trainer.train()
    assert json.loads((out / "checkpoints" / "last" / "state.json").read_text())["step"] == 1
    with served(port, "world"):
        await_port(port, listens=True)
        Trainer(config, resume=True).train()
    assert lines(out, spec) == lines(local, "world")


def killing(server: subprocess.Popen[str], port: int, reward: RewardFn, due: Callable[[], bool]) -> RewardFn:
    """The reward, asked of a server that dies first once it is due."""

    def judge(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
        if due():
            server.kill()
            await_port(port, listens=False)
        return reward(trajectories, policy)

    return judge
