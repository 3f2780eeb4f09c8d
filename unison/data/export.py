"""Items written as a folder of JSONL and pictures that `open_items` reads back."""

from __future__ import annotations

import json
from pathlib import Path

from unison.data.rows import COLUMNS, OPTIONS, PICTURES, WANTED, Suffix, join
from unison.data.tables import TableItems
from unison.data.world import WorldItems
from unison.types import Item


def export(items: WorldItems | TableItems, folder: Path, count: int) -> Path:
    """Writes the first `count` items as `metadata.jsonl` and `images/*.png` with the CoRL columns.

    Questions are written without their suffix, which `open_items` appends. `file_name` repeats the path of
    the picture because the imagefolder reader of `datasets` wants that column. Returns the folder.

    Raises:
        ValueError: more items than there are, or the folder already has a `metadata.jsonl`.
    """
    folder = Path(folder)
    if not 1 <= count <= len(items):
        raise ValueError(f"count = {count}: must be from 1 to the {len(items)} items there are")
    if (folder / "metadata.jsonl").exists():
        raise ValueError(f"folder = {str(folder)!r} already has a metadata.jsonl: name another folder")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = [json.dumps(_row(items[index], items.suffix, folder, f"images/{index:06d}.png")) for index in range(count)]
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def _row(item: Item, suffix: Suffix, folder: Path, file_name: str) -> dict[str, str]:
    """Saves the item's pictures and returns its row, without the fields that it lacks."""
    values = {name: getattr(item, name) for name in COLUMNS if name not in (*PICTURES, *OPTIONS, *WANTED)}
    if item.question:
        values["question"] = item.question.removesuffix(join("", suffix, item.kind))
    files = {"image": file_name, "target_image": file_name.replace(".png", "-target.png")}
    for name, picture in (("image", item.image), ("target_image", item.target_image)):
        if picture is not None:
            picture.save(folder / files[name])
            values[name] = files[name]
    row = {COLUMNS[name]: value for name, value in values.items() if value is not None}
    return row | ({"file_name": file_name} if item.image is not None else {})
