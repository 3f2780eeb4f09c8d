"""The tables of UniRL-Zero: every row is a recipe with options that it takes, and figures come from the right runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.learning import unirl_zero as benchmark
from benchmarks.learning.training import folder
from benchmarks.learning.unirl_zero import TABLES, Args, Row, compared, ends, sizes
from benchmarks.pages import DOCS, write_section
from unison import recipes
from unison.cli import train as cli_train
from unison.evaluation.records import Evaluation

ROWS = {row.name: row for rows in TABLES.values() for row in rows.values()}


def evaluation(step: int, right: int, of: int = 8) -> Evaluation:
    rows = [{"id": str(i), "task": "counting", "drawing_correct": i < right} for i in range(of)]
    return Evaluation(step, rows)


def write_run(run: Path, befores: int, afters: int, seconds: float = 30) -> None:
    (run / "eval").mkdir(parents=True)
    for step, right in ((0, befores), (2, afters)):
        evaluation(step, right).save(run / "eval")
    lines = [json.dumps({"step": step, "seconds": seconds}) for step in (1, 2)]
    (run / "timings.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize("table", TABLES)
def test_every_table_has_its_section(table: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text((DOCS / "unirl_zero.md").read_text())
    write_section(page, table, "ours")
    assert f"<!-- {table} -->\n\nours\n\n<!-- end {table} -->" in page.read_text()


@pytest.mark.parametrize("name", ROWS)
def test_a_rows_recipe_takes_its_options(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row, seen = ROWS[name], []
    monkeypatch.setattr(cli_train, "_train", lambda config, resume, last=False, profile=0: seen.append(config))
    cli_train.train([f"unirl-zero/{row.recipe}", f"--out={tmp_path / 'run'}", "--seed=5", *row.options])
    assert seen
    assert {config.seed for config in seen} == {5}
    assert seen != recipes.find(f"unirl-zero/{row.recipe}")()


def test_rows_that_differ_have_folders_of_their_own() -> None:
    rows = [row for table in TABLES.values() for row in table.values()]
    assert len({(row.recipe, row.options) for row in rows}) == len({row.name for row in rows})


def test_a_chain_is_compared_over_its_last_stage(tmp_path: Path) -> None:
    write_run(tmp_path / "cold-start", 2, 3)
    write_run(tmp_path / "rl", 3, 7)
    (tmp_path / "chain.json").write_text(json.dumps([{"out": f"x/{name}"} for name in ("cold-start", "rl")]))
    before, after = ends(tmp_path)
    assert [record["drawing_correct"] for record in before.records].count(True) == 3
    assert [record["drawing_correct"] for record in after.records].count(True) == 7


def test_a_row_tells_means_over_seeds_differences_and_minutes(tmp_path: Path) -> None:
    row, args = Row("drawn", "tiny-draw", benchmark.DRAWN), Args(seeds=(0, 1), out=tmp_path)
    for seed, after in ((0, 6), (1, 8)):
        write_run(folder(row.name, seed, tmp_path), 4, after)
    last = compared([row], args).splitlines()[-1]
    assert last.startswith("| drawn | drawing | 0.500 | 0.875 | +0.375 [")
    assert last.endswith("; +0.250 to +0.500 | 1.0 |")


def test_file_sizes_are_averaged_over_ten_steps_each(tmp_path: Path) -> None:
    row, args = Row("smaller", "tiny-jpeg-compressible", {}), Args(seeds=(0,), out=tmp_path)
    run = folder(row.name, 0, tmp_path)
    write_run(run, 4, 4)
    values = [2.0 - step / 100 for step in range(25)]  # the last five steps make no mean
    lines = [json.dumps({"reward/jpeg_kilobytes/mean": value}) for value in values]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    assert sizes([row], args).splitlines()[-1] == "| smaller | 0 | 1.955, 1.855 | -5% | yes |"
