"""The dry run: is the configuration sound, does the data have the columns, will it fit. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from unison import scenarios
from unison.config import RunConfig
from unison.data import open_items
from unison.data.rows import COLUMNS
from unison.data.streams import StreamItems
from unison.data.tables import TableItems
from unison.hub import is_hub_id
from unison.planning.memory import ALONE, Layout, estimate_memory
from unison.rewards import LOOKED_AT, load_rewards, require_judged

GIB = 2**30


def dry_run(config: RunConfig, layout: Layout = ALONE) -> None:
    """Checks everything that can be checked without weights and prints the plan.

    Args:
        layout: the processes that memory is planned for.

    Raises:
        ValueError: what would have stopped the run.
    """
    console = Console()
    scenario = scenarios.check(config)
    load_rewards([*config.rewards, *config.evaluation.rewards], config.remote)
    console.print(f"recipe {config.recipe}: scenario {config.scenario.name} ({scenario.summary})")
    console.print(
        f"{config.step.items} items x {config.scenario.group_size} trajectories a step, "
        f"{config.optim.steps} steps, rewards {config.rewards}"
    )
    console.print(f"training data: {_check_data(config, scenario.fields)}")
    memory = estimate_memory(config, layout)
    many = f" of {layout.processes} ({layout.strategy})" if layout.processes > 1 else ""
    table = Table(f"memory of one process{many}", "GiB", "when")
    whens = (("throughout", memory.lasting), ("rollout", memory.rolling), ("update", memory.updating))
    for when, sizes in whens:
        for name, size in sizes.items():
            table.add_row(name, f"{size / GIB:.2f}", when)
    table.add_row("peak", f"{memory.peak / GIB:.2f}", "rollout and update take turns")
    console.print(table)
    for checkpoint in memory.unknown:
        console.print(f"not counted, since its size is not known without a download: {checkpoint}", markup=False)


def _check_data(config: RunConfig, fields: tuple[str, ...]) -> str:
    source = config.data.train
    columns = {name: config.data.columns.get(name, COLUMNS[name]) for name in fields}
    if is_hub_id(source.partition(":")[0]) and not Path(source).expanduser().exists():
        wanted = ", ".join(f"{column} ({name})" for name, column in columns.items())
        return f"{source} on the hub, not opened in a dry run; columns it must have: {wanted}"
    items = open_items(source, "train", config.data, config.seed, max(config.step.items, LOOKED_AT))
    first = items[0]
    require_judged(config.rewards, items, source)
    missing = [name for name in fields if not getattr(first, name)]
    if missing:
        raise ValueError(
            f"data.train = {source!r}: items have no {', '.join(missing)}; columns read: "
            + ", ".join(f"{name} from {columns[name]!r}" for name in missing)
        )
    if isinstance(items, StreamItems):
        return f"{source}, streamed, first row readable"
    bad = items.complaints() if isinstance(items, TableItems) else []
    if bad and not config.data.skip_bad_rows:
        raise ValueError(f"{len(bad)} of {len(items):,} rows are bad; the first: {bad[0]}")
    return f"{source}, {len(items):,} items, {len(bad)} bad rows, first one readable"
