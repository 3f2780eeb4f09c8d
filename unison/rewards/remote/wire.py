"""What a reward server is sent: items and trajectories as JSON, pictures in it as PNG or WebP in base64.

One schema for both sides. Siblings name their item by its place, so that it is sent once. Turns stay behind: contexts
and actions belong to the policy, which no server has. Values come back in the trajectories' order, null where the
reward cannot judge.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Annotated, Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, PlainSerializer, PlainValidator, ValidationError

from unison.rewards.remote.http import in_base64
from unison.types import AnswerKind, Item, Trajectory, Wanted

FORMATS = ("PNG", "WEBP")
MOST_PIXELS = 2**24  # of a picture, which is not decoded if it says that it has more
EXCERPT = 60  # characters of what was sent that an error repeats


class WireError(ValueError):
    """What was sent cannot be read; the message names the field."""


def read_picture(value: Any) -> Image.Image:
    """A picture from its bytes in base64; one that is a picture already stays as it is.

    Raises:
        ValueError: anything else, a broken file, or too many pixels.
    """
    if isinstance(value, Image.Image):
        return value
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(value, validate=True)), formats=FORMATS)
        if picture.width * picture.height > MOST_PIXELS:
            raise ValueError(f"{picture.width} x {picture.height} pixels, at most {MOST_PIXELS} are read")
        return picture.convert("RGB")
    except Image.UnidentifiedImageError:
        raise ValueError("the bytes are no picture in PNG or WebP") from None
    except (TypeError, OSError, SyntaxError, Image.DecompressionBombError) as error:  # broken behind a sound header
        raise ValueError(f"the picture cannot be read: {error}") from None


def write_picture(picture: Image.Image) -> str:
    return in_base64(picture, "PNG")


Picture = Annotated[Image.Image, PlainValidator(read_picture), PlainSerializer(write_picture, when_used="json")]


class Sent(BaseModel):
    """An unknown field is an error: the two sides are of different versions, and a reward might miss it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SentItem(Sent):
    """The fields of `types.Item`, under their names."""

    id: str
    prompt: str | None = None
    image: Picture | None = None
    question: str | None = None
    answer: str | None = None
    reply: str | None = None
    source_caption: str | None = None
    target_caption: str | None = None
    target_image: Picture | None = None
    reverse: str | None = None
    kind: AnswerKind = "open_ended"
    task: str = "all"
    wanted: Wanted | None = None


class SentTrajectory(Sent):
    item: int
    """Place of its item in the batch's."""
    texts: tuple[str, ...] = ()
    images: tuple[Picture, ...] = ()


class SentBatch(Sent):
    items: tuple[SentItem, ...]
    trajectories: tuple[SentTrajectory, ...]


class SentValues(Sent):
    values: tuple[float | None, ...]


def write(trajectories: Sequence[Trajectory]) -> bytes:
    """Trajectories as a request holds them."""
    items = {id(t.item): t.item for t in trajectories}  # an item and its siblings are one object
    places = {key: place for place, key in enumerate(items)}
    batch = SentBatch(
        items=tuple(_sent_item(item) for item in items.values()),
        trajectories=tuple(
            SentTrajectory(item=places[id(t.item)], texts=t.texts, images=t.images) for t in trajectories
        ),
    )
    return batch.model_dump_json(exclude_defaults=True).encode()


def read(body: bytes) -> list[Trajectory]:
    """Trajectories, without turns, from a request.

    Raises:
        WireError: something is missing, unknown or of the wrong kind; says where and what.
    """
    try:
        batch = SentBatch.model_validate_json(body)
    except ValidationError as error:
        raise WireError(_sentence(error)) from None
    items = [Item(**{name: getattr(sent, name) for name in SentItem.model_fields}) for sent in batch.items]
    for row, sent in enumerate(batch.trajectories):
        if not 0 <= sent.item < len(items):
            raise WireError(f"trajectories.{row}.item = {sent.item}: the request has {len(items)} items")
    return [Trajectory(items[sent.item], (), sent.texts, sent.images) for sent in batch.trajectories]


def size(trajectory: Trajectory) -> int:
    """Most bytes that a trajectory without its item can take, computed without compressing pictures."""
    return sum(map(_picture_size, trajectory.images)) + sum(8 * len(text) for text in trajectory.texts) + 256


def item_size(item: Item) -> int:
    """Most bytes that an item can take."""
    captions = (item.source_caption, item.target_caption, item.reverse)
    texts = (item.id, item.prompt, item.question, item.answer, item.reply, *captions)
    clauses = 256 * (len(item.wanted.include) + len(item.wanted.exclude)) if item.wanted else 0
    pictures = sum(_picture_size(picture) for picture in (item.image, item.target_image) if picture)
    return pictures + sum(8 * len(text or "") for text in texts) + clauses + 1024


def _picture_size(picture: Image.Image) -> int:
    """RGB in base64, 4 bytes a pixel, one filter byte a row, and some for headers."""
    return 4 * (picture.width + 1) * picture.height + 4096


def _sent_item(item: Item) -> SentItem:
    return SentItem(**{name: getattr(item, name) for name in SentItem.model_fields})


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"])) or "the request"
    message = first["msg"].removeprefix("Value error, ")
    shown = repr(first["input"])
    given = f" (given: {shown[:EXCERPT]}{'...' if len(shown) > EXCERPT else ''})" if first["type"] != "missing" else ""
    more = f"; {error.error_count() - 1} more" if error.error_count() > 1 else ""
    return f"{where}: {message}{given}{more}"
