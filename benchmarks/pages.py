"""Measured tables: printed, with everything their figures depend on, and in the documentation between markers."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
import transformers

from benchmarks.speed.compare import HEADER, Row

DOCS = Path(__file__).parents[1] / "docs"


def write_section(page: Path, name: str, text: str) -> None:
    """Replaces what stands between `<!-- name -->` and `<!-- end name -->` in the page."""
    start, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    before, _, rest = page.read_text().partition(start)
    _, found, after = rest.partition(end)
    assert found, f"{page} has no section {start} ... {end}"
    page.write_text(f"{before}{start}\n\n{text}\n\n{end}{after}")


def publish(module: str, rows: Iterable[Row], repeats: int, model: str, *, written: bool, header: str = HEADER) -> None:
    """`publish_lines` of rows that were timed in turns."""
    lines = (row.markdown() for row in rows)
    publish_lines(module, header, lines, f"{repeats} repetitions in turns", model, written=written)


def publish_lines(module: str, header: str, lines: Iterable[str], how: str, model: str, *, written: bool) -> None:
    """Prints a table as its lines come and then its circumstances; `written` puts both into docs/benchmarks.md.

    Args:
        module: the benchmark, which names its section too.
        model: what was measured, in words.
    """
    print(header, flush=True)
    shown = []
    for line in lines:
        shown.append(line)
        print(line, flush=True)
    told = circumstances(module, how, model)
    print(f"\n{told}")
    if written:
        write_section(DOCS / "benchmarks.md", module, "\n".join([header, *shown, "", told]))


def circumstances(module: str, how: str, model: str) -> str:
    """The command and everything that its figures depend on."""
    return "\n".join(
        [
            f"- command: `{' '.join(['python -m', module, *sys.argv[1:]])}`",
            f"- {how}, {torch.get_num_threads()} threads, {_processor()}",
            f"- {model}",
            f"- torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}",
        ]
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()
