"""``rbl run``: plan, run, judge, store, report."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from robustbench_lite.cli.app import App, counted, json_option, print_json, warn
from robustbench_lite.request import RunRequest, load_request

if TYPE_CHECKING:
    from robustbench_lite.diagnostics.plan import PlannedChecks
    from robustbench_lite.plan import Plan


def request_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that ``run`` and ``plan`` share: the keys of a configuration file, one by one."""
    options = [
        click.option("--config", type=click.Path(path_type=Path), help="YAML with the same keys as these options."),
        click.option("--defense", multiple=True, help="Defenses, or 'all': pgd-at, 'jpeg[base=pgd-at,quality=75]'."),
        click.option("--attack", multiple=True, help="Attacks, or 'all': pgd, 'pgd[steps=100]'."),
        click.option("--metric", multiple=True, help="Metrics to measure on the models, or 'all': flops [none]."),
        click.option("--dataset", multiple=True, help="Data sets: digits, mnist, 'arrays[path=mine.npz]' [digits]."),
        click.option("--threat", multiple=True, help="Threat models: linf:8/255, l2:0.5 [the protocol's]."),
        click.option("--protocol", help="Name or YAML file of an evaluation protocol [quick]."),
        click.option("--seed", type=int, help="Seed of attacks and stochastic defenses [0]."),
        click.option("--n", type=int, help="Judge the first N examples of the evaluation subset [the protocol's]."),
        click.option("--weights", multiple=True, metavar="DEFENSE=FILE", help="Weights for a defense."),
        click.option("--store", type=click.Path(path_type=Path), help="Folder of results [RBL_STORE, or ./rbl-results]."),
        click.option("--data", type=click.Path(path_type=Path), help="Folder of data sets [RBL_DATA, or ./data]."),
        click.option("--executor", type=click.Choice(["local", "inline"]), help="Worker processes, or this one [local]."),
        click.option("--device", help="auto, cpu, or cuda:0,cuda:1 [auto]."),
        click.option("--workers", type=int, help="Worker processes on the CPU, or per GPU [one per core, one per GPU]."),
        click.option("--timeout", type=float, help="Seconds that a cell may take [no limit]."),
        click.option("--micro-batch", type=int, help="Most images in one pass [what fits]."),
        click.option(
            "--keep-examples",
            is_flag=False,
            flag_value="all",
            metavar="[N]",
            help="Store images, too: of the first N examples that a cell beats, or of all examples [0].",
        ),
        click.option("--diagnose/--no-diagnose", default=None, help="Make the expensive checks, too [as the protocol says]."),
        click.option("--shard", metavar="I/N", help="Run every N-th cell only, for job arrays that share a store."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def read_request(app: App, options: dict[str, Any]) -> RunRequest:
    """The request of ``--config`` and the options given; plugin files of the file are added to the app's."""
    given = {key: value for key, value in options.items() if value is not None and value != ()}
    config = given.pop("config", None)
    request = load_request(config, given)
    app.plugin_files = list(dict.fromkeys([*app.plugin_files, *request.plugin]))
    return request.model_copy(update={"plugin": tuple(app.plugin_files)})


@click.command("run")
@request_options
@click.option("--dry-run", is_flag=True, help="Print the plan with reasons and stop.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Also write the leaderboards to this folder.")
@json_option
@click.pass_obj
def command(app: App, /, dry_run: bool, out: Path | None, as_json: bool, **options: Any) -> int:
    """Run defenses against attacks and judge what comes out; with --metric, measure the models.

    With --metric and without --attack nothing is attacked. Running the same command again goes on where the last one stopped
    and recomputes nothing that is whole.
    """
    request = read_request(app, options)
    registry = app.registry()

    if dry_run:
        from robustbench_lite.cli.plan import show_plan

        show_plan(app, request, as_json)
        return 0

    from robustbench_lite.diagnostics.plan import plan_checks
    from robustbench_lite.planner import make_plan
    from robustbench_lite.store import Store

    store = Store.open(request.store)
    plan = make_plan(request, registry, store)
    for cell in plan.cells:
        if cell.state == "cached":  # nobody works on it again: the others are tidied up by who does
            store.cell(cell.spec).tidy_up()
    checks = plan_checks(plan.cells, store, expensive=wants_expensive(request, plan))
    statuses = _execute(app, request, plan, checks)
    for message in store.messages:
        warn(message)
    registry.notify("rbl_run_finished", store=str(request.store), counts=_count(statuses))
    return _report(app, request, plan, statuses, out, as_json)


def wants_expensive(request: RunRequest, plan: Plan) -> bool:
    """Whether the run makes the expensive checks, too: as it was asked, or else as its protocol says."""
    return plan.protocol.diagnose if request.diagnose is None else request.diagnose


def _execute(app: App, request: RunRequest, plan: Plan, checks: Sequence[PlannedChecks]) -> dict[str, tuple[str, str]]:
    """Run the plan's open cells and make the open checks; returns (status, reason) by key, of cells only.

    Raises KeyboardInterrupt after saying what is kept.
    """
    from robustbench_lite.cli.progress import CheckReporter, Progress
    from robustbench_lite.executors import make_executor
    from robustbench_lite.executors.slots import find_slots
    from robustbench_lite.runner import WorkItem

    todo = [cell for cell in plan.cells if cell.to_run]
    unchecked = [each for each in checks if each.checks]
    statuses: dict[str, tuple[str, str]] = {}
    if not todo and (stored := sum(cell.state == "cached" for cell in plan.cells)):
        warn(f"nothing left to run: {counted(stored, 'cell')} stored")
    if not todo and not unchecked:
        return statuses
    if not todo:
        warn(f"{counted(len(unchecked), 'set')} of checks still to be made")
    slots = find_slots(request.device, request.workers, len(todo) + len(unchecked))
    items = [WorkItem.of(cell, request, slots[0].device) for cell in todo]
    specs = {item.key: item.spec for item in items}
    # Beside their cells: a worker keeps to the model that it has loaded.
    items += [WorkItem.of(each, request, slots[0].device, each.checks) for each in unchecked]
    executor = make_executor(request.executor, slots, timeout=request.timeout, plugins=request.plugin)
    reporter = CheckReporter(len(unchecked))
    with Progress(plan) as progress, _terminated_as_interrupted():

        def emit(event: dict[str, Any]) -> None:
            if event["key"] not in specs:
                reporter.show(event)
                return
            progress.show(event)
            if event["event"] == "finished" and event["status"] != "busy":
                statuses[event["key"]] = (event["status"], event["reason"])
                app.registry().notify("rbl_cell_finished", cell=specs[event["key"]], status=event["status"])

        try:
            executor.run(items, emit)
        except KeyboardInterrupt:
            progress.stop()
            done = sum(status in ("done", "cached") for status, _ in statuses.values())
            warn(
                f"interrupted: {done} of {counted(len(todo), 'cell')} done, and the finished shards of the others are kept in "
                f"{request.store}; run the same command again to go on"
            )
            raise
    return statuses


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Treat SIGTERM, which schedulers send, as Ctrl-C."""

    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _count(statuses: dict[str, tuple[str, str]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for status, _ in statuses.values():
        counts[status] = counts.get(status, 0) + 1
    return counts


def _report(
    app: App, request: RunRequest, plan: Plan, statuses: dict[str, tuple[str, str]], out: Path | None, as_json: bool
) -> int:
    """Print and write the tables of this run, and the exit code: 1 where a cell failed or nothing could be run."""
    from robustbench_lite.cli.report import add_measures, make_tables, print_measures, print_tables, write_tables
    from robustbench_lite.keys import cell_key
    from robustbench_lite.store import Store
    from robustbench_lite.threat import Threat

    wanted = {cell.key for cell in plan.cells if cell.key}
    store = Store.open(request.store, create=False, read_only=True)
    threats = {Threat.parse(cell.threat) for cell in plan.cells if cell.threat}
    cells = [cell for cell in store.cells() if cell.key in wanted]

    def asked(spec: Mapping[str, Any]) -> bool:
        return cell_key(spec) in wanted

    tables, others = add_measures(
        make_tables(store, cells, app.registry(), sorted(threats, key=str)), store, app.registry(), asked
    )
    if as_json:
        from robustbench_lite.leaderboard.json_table import measures_to_json, to_json

        shown = [to_json(table) for table in tables] + [measures_to_json(table) for table in others]
        failed = {key: {"status": status, "reason": reason} for key, (status, reason) in statuses.items()}
        print_json({"plan": [cell.to_json() for cell in plan.cells], "finished": failed, "tables": shown})
    else:
        print_tables(tables, "auto", app.command_line)
        print_measures(others)
    if out is not None:
        for path in write_tables(tables, out, app):
            warn(f"wrote {path}")
    labels = {cell.key: cell.label for cell in plan.cells}
    failures = {key: value for key, value in statuses.items() if value[0] not in ("done", "cached")}
    for status, reason in sorted(set(failures.values())):
        concerned = sorted(labels[key] for key, value in failures.items() if value == (status, reason))
        warn(f"{status}: {'; '.join(concerned)}: {reason}")
    unusable = {cell.reason for cell in plan.cells if cell.reason.startswith("unusable")}
    for reason in sorted(unusable):
        warn(reason)
    if failures:
        warn(
            f"{len(failures)} of {counted(len(statuses), 'cell')} failed; what succeeded is kept, and the same command tries "
            "them again"
        )
    if plan.cells and all(cell.state == "skip" for cell in plan.cells):
        for reason, number in Counter(cell.reason for cell in plan.cells if cell.reason not in unusable).items():
            warn(f"{counted(number, 'cell')} skipped: {reason}")
        warn("nothing could be run; `rbl plan` with the same options shows every cell")
        return 2
    if "all" not in request.attack:  # what was asked for by name is not left out of the tables without a word
        run = {cell.attack for cell in plan.cells if cell.state != "skip"}
        for attack, reason in sorted({(cell.attack, cell.reason) for cell in plan.cells if cell.attack}):
            if attack in run or reason in unusable:
                continue
            warn(f"{attack} was skipped everywhere: {reason}")
    return 1 if failures or unusable else 0
