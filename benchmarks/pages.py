"""Measured tables in the documentation, between markers of their own."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def write_section(page: Path, name: str, text: str) -> None:
    """Replaces what stands between `<!-- name -->` and `<!-- end name -->` in the page."""
    start, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    before, _, rest = page.read_text().partition(start)
    _, found, after = rest.partition(end)
    assert found, f"{page} has no section {start} ... {end}"
    page.write_text(f"{before}{start}\n\n{text}\n\n{end}{after}")
