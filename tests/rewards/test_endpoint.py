"""The client of OpenAI-compatible endpoints, against a server."""

from __future__ import annotations

import base64
import io
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unison.rewards.remote.endpoint import TOKEN, Completion, Endpoint, Message
from unison.rewards.remote.http import ClientError

Serve = Callable[..., str]


def says(text: str | None, **more: Any) -> tuple[int, Any]:
    return 200, {"choices": [{"message": {"content": text}, **more}]}


def echo(asked: dict[str, Any], headers: Any) -> tuple[int, Any]:
    return says(asked["messages"][-1]["content"])


def quick(address: str, **fields: Any) -> Endpoint:
    return replace(Endpoint.parse(address), **({"backoff": 0.01} | fields))


def ask(endpoint: Endpoint, *texts: str) -> list[str]:
    return [told.text for told in endpoint.complete([[Message("user", (text,))] for text in texts], 8)]


def test_replies_come_in_the_order_of_the_conversations_over_connections_that_are_kept(serve_chat: Serve) -> None:
    ports: set[int] = set()
    busy, most, lock = 0, 0, threading.Lock()

    def slower_first(asked: dict[str, Any], headers: Any) -> tuple[int, Any]:
        nonlocal busy, most
        ports.add(headers["Client-Port"])
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(0.02 if asked["messages"][-1]["content"] == "0" else 0.005)
        with lock:
            busy -= 1
        return echo(asked, headers)

    endpoint = quick(serve_chat(slower_first), workers=4)
    texts = [str(i) for i in range(24)]
    assert ask(endpoint, *texts) == texts
    assert ask(endpoint, "again") == ["again"]
    assert 1 < most <= 4
    assert endpoint.counts["attempts"] == 25
    assert 1 < len(ports) <= 4


def test_what_is_asked_is_a_chat_completion_without_chance(serve_chat: Serve) -> None:
    seen: list[dict[str, Any]] = []

    def keep(asked: dict[str, Any], headers: Any) -> tuple[int, Any]:
        seen.append(asked)
        return says("Yes")

    quick(serve_chat(keep)).complete([[Message("system", ("be brief",)), Message("user", ("a", "b"))]], 5, 3)
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a\nb"}]
    options = {"model": "judge", "max_tokens": 5, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    assert seen == [{"messages": messages, **options}]


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_pictures_arrive_as_they_are(form: str, serve_chat: Serve) -> None:
    seen: list[Any] = []

    def keep(asked: dict[str, Any], headers: Any) -> tuple[int, Any]:
        seen.append(asked["messages"][0]["content"])
        return says("a cat")

    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    endpoint = quick(serve_chat(keep), picture=form)
    endpoint.complete([[Message("user", (Image.fromarray(pixels), "What is it?"))]], 8)
    picture, text = seen[0]
    assert text == {"type": "text", "text": "What is it?"}
    head, _, data = picture["image_url"]["url"].partition(",")
    assert head == f"data:image/{form.lower()};base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), pixels)


# -- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [(500, "out of memory"), (503, {}), (429, {}), (200, "<html>"), (200, {})])
def test_a_failure_that_may_pass_is_tried_again(failure: tuple[int, Any], serve_chat: Serve) -> None:
    tried: Counter[str] = Counter()

    def third_time(asked: dict[str, Any], headers: Any) -> tuple[int, Any]:
        text = asked["messages"][-1]["content"]
        tried[text] += 1
        return says(text) if tried[text] == 3 else failure

    endpoint = quick(serve_chat(third_time))
    assert ask(endpoint, "a", "b") == ["a", "b"]
    assert (endpoint.counts["attempts"], endpoint.counts["failures"]) == (6, 4)


def test_attempts_are_bounded_and_the_error_says_what_happened(serve_chat: Serve) -> None:
    endpoint = quick(serve_chat(lambda asked, headers: (500, "out of memory")), attempts=3)
    with pytest.raises(ClientError, match=r"http://127.0.0.1:\d+/v1 \(model 'judge'\) answered 500: out of memory; l"):
        ask(endpoint, "a")
    assert endpoint.counts["attempts"] == 3


def test_outcomes_hold_an_error_in_the_place_of_what_failed_with_its_kind_and_cost(serve_chat: Serve) -> None:
    def fail_some(asked: dict[str, Any], headers: Any) -> tuple[int, Any]:
        text = asked["messages"][-1]["content"]
        return (int(text), {}) if text.isdigit() else (200, "<html>") if text == "page" else says(text)

    endpoint = quick(serve_chat(fail_some), attempts=2)
    conversations = [[Message("user", (text,))] for text in ("a", "500", "b", "400", "page")]
    told = list(endpoint.outcomes(conversations, 8))
    kinds = [(one.kind, one.attempts) if isinstance(one, ClientError) else (one.text, one.used) for one in told]
    used = {"prompt_tokens": 0, "completion_tokens": 0, "attempts": 1}
    failed = [("status 500", 2), ("status 400", 1), ("no completion", 2)]
    assert kinds == [("a", used), failed[0], ("b", used), failed[1], failed[2]]


def test_an_outcome_is_given_before_later_ones_are_there(serve_chat: Serve) -> None:
    given = threading.Event()

    def wait(asked: dict[str, Any], headers: Any) -> tuple[int, Any]:
        text = asked["messages"][-1]["content"]
        assert text == "first" or given.wait(30)
        return says(text)

    endpoint = quick(serve_chat(wait), workers=2)
    outcomes = endpoint.outcomes([[Message("user", (text,))] for text in ("first", "second")], 8)
    first = next(outcomes)
    given.set()
    assert [first, *outcomes] == [Completion("first"), Completion("second")]


def test_a_check_can_show_a_picture(serve_chat: Serve) -> None:
    seen: list[Any] = []

    def blind(asked: dict[str, Any], headers: Any) -> tuple[int, Any]:
        seen.append(asked["messages"][0]["content"])
        return says("Yes") if isinstance(seen[-1], str) else (400, {"error": "no images"})

    endpoint = quick(serve_chat(blind))
    endpoint.check()
    with pytest.raises(ClientError, match=r"answered 400: .*no images"):
        endpoint.check(image=Image.new("RGB", (8, 8)))
    assert [part["type"] for part in seen[1]] == ["image_url", "text"]


def test_a_request_that_the_server_refuses_is_not_repeated(serve_chat: Serve) -> None:
    endpoint = quick(serve_chat(lambda asked, headers: (400, {"error": "too long"})))
    with pytest.raises(ClientError, match=r"answered 400: .*too long.*see what the server says"):
        ask(endpoint, "a")
    assert endpoint.counts["attempts"] == 1


def test_a_server_that_does_not_answer_in_time_is_given_up(serve_chat: Serve) -> None:
    def sleep(asked: dict[str, Any], headers: Any) -> tuple[int, Any]:
        time.sleep(1)
        return says("late")

    endpoint, start = quick(serve_chat(sleep), timeout=0.05, attempts=2), time.perf_counter()
    with pytest.raises(ClientError, match=r"gave no answer in 0.05 s; is the server overloaded"):
        ask(endpoint, "a")
    assert time.perf_counter() - start < 0.9
    assert endpoint.counts["attempts"] == 2


def test_a_server_that_is_not_there_is_named_with_the_remedy() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ClientError, match=rf"http://127.0.0.1:{port}/v1 .*cannot be reached .*start the server"):
        quick(f"http://127.0.0.1:{port}/v1#m").check()


def test_a_path_without_chat_completions_is_named_with_the_remedy(serve_chat: Serve) -> None:
    with pytest.raises(ClientError, match=r"answered 404: .*does the URL end where /chat/completions follows"):
        quick(serve_chat(echo).replace("/v1", "")).check()


@pytest.mark.parametrize("address", ["http://host:1/v1", "host:1/v1#m", "ftp://host#m", "http://#m", "http://h:x#m"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ClientError, match=r"is no endpoint: write http://host:port/v1#model"):
        Endpoint.parse(address)


def test_the_name_of_a_model_may_hold_any_mark() -> None:
    endpoint = Endpoint.parse("https://host:8/v1/#owner/model:7b#q4")
    assert (endpoint.url, endpoint.model) == ("https://host:8/v1", "owner/model:7b#q4")


# -- the token -------------------------------------------------------------------------------------------------------


def guarded(asked: dict[str, Any], headers: Any) -> tuple[int, Any]:
    given = headers.get("Authorization")
    return says("Yes") if given == "Bearer right-token" else (401, {"error": f"bad token: {given}"})


def test_the_token_comes_from_the_environment(serve_chat: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "right-token\n")
    endpoint = quick(serve_chat(guarded))
    endpoint.check()
    assert "right-token" not in repr(endpoint)


@pytest.mark.parametrize("token", ["wrong-token", ""])
def test_a_wrong_token_is_an_error_that_names_the_variable_and_not_the_token(
    token: str, serve_chat: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN, token)
    endpoint = quick(serve_chat(guarded))
    with pytest.raises(ClientError, match=f"answered 401: .*environment variable {TOKEN}") as caught:
        endpoint.check()
    assert "wrong-token" not in str(caught.value)
    assert endpoint.counts["attempts"] == 1


def test_a_token_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ClientError, match=f"put it into the environment variable {TOKEN}") as caught:
        Endpoint.parse("http://user:secret@host/v1#m")
    assert "secret@" not in str(caught.value)


# -- the cache -------------------------------------------------------------------------------------------------------


def test_with_a_cache_nothing_is_asked_twice(serve_chat: Serve, tmp_path: Path) -> None:
    def count(asked: dict[str, Any], headers: Any) -> tuple[int, Any]:
        top = [{"token": "Yes", "logprob": -0.5}]
        return says(asked["messages"][-1]["content"], logprobs={"content": [{"top_logprobs": top}]})

    address = serve_chat(count)
    first = quick(address, cache=tmp_path / "cache")
    conversations = [[Message("user", (text,))] for text in "ab"]
    told = first.complete(conversations, 8, 1)
    assert told[0].first == {"Yes": -0.5}
    later = quick(address, cache=tmp_path / "cache")
    assert later.complete(conversations, 8, 1) == told
    assert (first.counts["attempts"], later.counts["attempts"], later.counts["cached"]) == (2, 0, 2)
    assert ask(later, "a") == ["a"], "without log-probabilities it is another request"
    assert later.counts["attempts"] == 1
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_a_check_asks_the_server_whatever_is_cached(serve_chat: Serve, tmp_path: Path) -> None:
    endpoint = quick(serve_chat(echo), cache=tmp_path)
    endpoint.check()
    endpoint.check()
    assert endpoint.counts["attempts"] == 2
    assert not list(tmp_path.iterdir())


def test_tokens_are_counted(serve_chat: Serve) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    reply = {"choices": [{"message": {"content": "Yes"}}], "usage": usage}
    endpoint = quick(serve_chat(lambda asked, headers: (200, reply)))
    ask(endpoint, "a", "b", "c")
    assert (endpoint.counts["prompt_tokens"], endpoint.counts["completion_tokens"]) == (21, 6)
