"""What every test shares. Nothing heavy is imported here: the tests that need torch import it themselves."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import nn
    from transformers import JanusForConditionalGeneration, JanusProcessor

    from unison.policies.janus.policy import Janus
    from unison.policies.metaquery.network import Parts
    from unison.policies.metaquery.policy import MetaQuery
    from unison.policies.showo.policy import ShowO

# Before any test imports a Hugging Face library, which reads it once. Nothing in the tests needs the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

REPO = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # a pytest-xdist worker: the workers share the cores among them
        import torch

        torch.set_num_threads(1)
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests start


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden numbers: $UNISON_GOLDEN, else ../shared/golden beside the repository."""
    folder = Path(os.environ.get("UNISON_GOLDEN") or REPO.parent / "shared" / "golden")
    if not folder.is_dir():
        pytest.skip(f"no golden numbers at {folder}: set UNISON_GOLDEN to the folder that holds them")
    return folder


@pytest.fixture
def unplanned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dry runs plan no memory, which takes longer than all else that they check."""
    from unison.planning.memory import Memory

    monkeypatch.setattr("unison.planning.dry_run.estimate_memory", lambda *_: Memory({}, {}, {}))


@pytest.fixture(scope="session")
def fill_golden() -> Callable[[nn.Module], None]:
    """Fills a network's parameters by the rule of the golden numbers: normal draws seeded by the parameter's name, over
    the root of the fan-in for matrices, a tenth around 1 for the weights of norms and around 0 for biases."""
    import zlib

    import torch

    def fill(network: nn.Module) -> None:
        with torch.no_grad():
            for name, weight in network.named_parameters():
                generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                draws = torch.randn(weight.shape, generator=generator)
                if weight.ndim >= 2:
                    weight.copy_(draws * weight[0].numel() ** -0.5)
                else:
                    weight.copy_(0.1 * draws + name.endswith("weight"))

    return fill


@pytest.fixture(scope="session")
def tiny_janus() -> tuple[JanusForConditionalGeneration, JanusProcessor]:
    """The real Janus at toy size, random, with weights so large that every part of a context matters."""
    import torch

    from unison.pretrain.corpus import CorpusConfig
    from unison.pretrain.janus import build_janus, build_processor

    torch.manual_seed(0)
    processor = build_processor(CorpusConfig())
    network = build_janus(processor, width=64, layers=2).eval()
    scales = {
        "language_model.embed_tokens": 1.0,
        "language_model": 0.2,
        "generation_embeddings": 1.0,
        "generation": 0.17,
        "aligner": 0.3,
        "lm_head": 0.3,
    }
    with torch.no_grad():
        for name, weight in network.named_parameters():
            scale = next((scale for part, scale in scales.items() if part in name), None)
            if scale is not None and weight.ndim == 2:
                weight.normal_(0, scale)
    return network, processor


@pytest.fixture(scope="session")
def make_policy(tiny_janus: tuple[JanusForConditionalGeneration, JanusProcessor]) -> Callable[..., Janus]:
    """Makes a policy of its own weights, equal to the others' at first; fields of PolicyConfig by keyword."""
    import copy

    from unison.config import PolicyConfig
    from unison.policies.janus.policy import Janus

    network, processor = tiny_janus

    def make(**fields: Any) -> Janus:
        return Janus(copy.deepcopy(network), processor, PolicyConfig("tiny", **fields))

    return make


@pytest.fixture(scope="session")
def policy(make_policy: Callable[..., Janus]) -> Janus:
    """A policy whose weights no test may change."""
    return make_policy()


@pytest.fixture(scope="session")
def tiny_showo() -> ShowO:
    """The real Show-o at toy size, random, with weights so large that every part of a context matters."""
    import torch

    from unison.config import PolicyConfig
    from unison.policies.showo.magvit import MagvitConfig
    from unison.policies.showo.network import PhiSizes, ShowOConfig, ShowONetwork
    from unison.policies.showo.policy import ShowO
    from unison.pretrain.corpus import CorpusConfig
    from unison.pretrain.janus import build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer(CorpusConfig())
    config = ShowOConfig(
        w_clip_vit=False,
        llm_vocab_size=len(tokenizer),
        codebook_size=64,
        num_vq_tokens=36,
        max_seq_length=40,
        phi=PhiSizes(64, 128, 2, 4),
    )
    levels = (1, 1, 1, 1)
    painter = MagvitConfig(8, 4, 6, levels, levels, levels, levels)
    network = ShowONetwork(config, painter).eval()
    with torch.no_grad():
        for name, weight in network.showo.named_parameters():
            if weight.ndim == 2:
                weight.normal_(0, 1.0 if "embed" in name else 0.2)
    return ShowO(network, tokenizer, PolicyConfig("tiny"))


@pytest.fixture(scope="session")
def make_showo(tiny_showo: ShowO) -> Callable[..., ShowO]:
    """Makes a Show-o of its own weights, equal to the others' at first; fields of PolicyConfig by keyword."""
    import copy

    from unison.config import PolicyConfig
    from unison.policies.showo.policy import ShowO

    def make(**fields: Any) -> ShowO:
        return ShowO(copy.deepcopy(tiny_showo.network), tiny_showo.tokenizer, PolicyConfig("tiny", **fields))

    return make


@pytest.fixture(scope="session")
def showo(make_showo: Callable[..., ShowO]) -> ShowO:
    """A Show-o whose weights no test may change."""
    return make_showo()


@pytest.fixture(scope="session")
def make_showo_clip(showo: ShowO) -> Callable[..., ShowO]:
    """Makes the same decoder with a random CLIP tower, through which it reads images."""
    import copy
    from dataclasses import replace

    import torch
    from transformers import CLIPVisionConfig

    from unison.config import PolicyConfig
    from unison.policies.showo.network import ShowONetwork
    from unison.policies.showo.policy import ShowO

    torch.manual_seed(0)
    tower = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=24, patch_size=8
    )
    network = showo.network
    other = ShowONetwork(replace(network.config, w_clip_vit=True), network.image_tokenizer.config, tower).eval()
    other.load_state_dict(network.state_dict(), strict=False)

    def make(**fields: Any) -> ShowO:
        return ShowO(copy.deepcopy(other), showo.tokenizer, PolicyConfig("tiny", **fields))

    return make


@pytest.fixture(scope="session")
def showo_clip(make_showo_clip: Callable[..., ShowO]) -> ShowO:
    """A Show-o that reads images through CLIP, whose weights no test may change."""
    return make_showo_clip()


@pytest.fixture(scope="session")
def tiny_metaquery() -> Parts:
    """The real parts at toy size, random, with weights so large that every part of a context matters, and an editing
    path that is not zero."""
    import torch

    from unison.pretrain.corpus import CorpusConfig
    from unison.pretrain.metaquery import build_metaquery

    torch.manual_seed(0)
    small = {"width": 64, "layers": 2, "vision_width": 64, "vision_layers": 1}
    parts = build_metaquery(CorpusConfig(), **small, transformer_width=64, transformer_layers=2, queries=6)
    scales = {"qwen.model.language_model.embed": 1.0, "qwen": 0.2, "bridge.queries": 1.0, "bridge": 0.2}
    with torch.no_grad():
        for name, weight in parts.network.named_parameters():
            scale = next((scale for part, scale in scales.items() if name.startswith(part)), None)
            if scale is not None and weight.ndim == 2:
                weight.normal_(0, scale)
        for block in parts.network.transformer.transformer_blocks:
            block.attn2.to_out[0].weight.normal_(0, 0.5)  # what the prompt says
        parts.network.transformer.proj_out.weight.normal_(0, 0.3)
    return parts


@pytest.fixture(scope="session")
def make_metaquery(tiny_metaquery: Parts) -> Callable[..., MetaQuery]:
    """Makes a MetaQuery of its own weights, equal to the others' at first; fields of PolicyConfig by keyword."""
    import copy

    from unison.config import PolicyConfig
    from unison.policies.metaquery.policy import MetaQuery

    parts = tiny_metaquery

    def make(**fields: Any) -> MetaQuery:
        network = copy.deepcopy(parts.network)
        return MetaQuery(network, parts.tokenizer, parts.image_processor, PolicyConfig("tiny", **fields))

    return make


@pytest.fixture(scope="session")
def metaquery(make_metaquery: Callable[..., MetaQuery]) -> MetaQuery:
    """A MetaQuery whose weights no test may change."""
    return make_metaquery()


@pytest.fixture(scope="session")
def checkpoint(policy: Janus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny policy as a checkpoint folder, which no test may change."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny-janus"
    folder.mkdir()
    policy.save(folder)
    return folder


@pytest.fixture(scope="session")
def serve_chat() -> Iterator[Callable[..., str]]:
    """Starts an HTTP server whose answers to POST are those of a function (body, headers) -> (status, body); returns
    its address with a model, `http://127.0.0.1:port/v1#judge`."""
    import json
    import threading
    from contextlib import suppress
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    servers: list[ThreadingHTTPServer] = []

    def start(answer: Callable[[dict[str, Any], Any], tuple[int, Any]]) -> str:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # connections are kept

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.headers["Client-Port"] = str(self.client_address[1])
                known = self.path == "/v1/chat/completions"
                status, told = answer(asked, self.headers) if known else (404, {"error": f"no {self.path}"})
                body = told.encode() if isinstance(told, str) else json.dumps(told).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with suppress(BrokenPipeError):  # a client that has given up
                    self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/v1#judge"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


FAMILIES = {"janus": "policy", "showo": "showo", "metaquery": "metaquery"}
"""Their fixtures."""


@pytest.fixture(scope="module")
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Saves the tiny policy of a family, once; returns its folder."""

    def save(family: str) -> str:
        folder = root / family
        if not folder.exists():
            folder.mkdir()
            request.getfixturevalue(FAMILIES[family]).save(folder)
        return str(folder)

    root = tmp_path_factory.mktemp("checkpoints")
    return save
