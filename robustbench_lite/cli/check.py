"""``rbl check``: the conformance suite on a plugin object, or on all objects of a plugin."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_lite.cli.app import App, json_option, print_json
from robustbench_lite.errors import UnknownName

if TYPE_CHECKING:
    from robustbench_lite.records import Entry, Problem
    from robustbench_lite.registry import Registry
    from robustbench_lite.testing.checks import Outcome, Subject, Suite

KINDS = ("attack", "defense", "dataset", "metric")
_WIDTH = 8  # of the words passed, FAILED, skipped


@click.command("check")
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), help="Where one name stands for objects of several kinds.")
@click.option("--dataset", default="", help="What a defense is built for [the first that it declares, or digits].")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of data sets [RBL_DATA, or ./data].")
@click.option("--device", default="cpu", help="What attacks and defenses are run on: cpu, cuda or cuda:1 [cpu].")
@json_option
@click.pass_obj
def command(app: App, name: str, kind: str | None, dataset: str, data: Path | None, device: str, as_json: bool) -> int:
    """Run the conformance suite on NAME: an id, a short name, a variant such as 'pgd[steps=10]', or a namespace.

    A namespace stands for everything that it brings; of its checks only those are listed that failed, or that something can be
    done about. Exits with 1 where a check failed or the plugin has errors.
    """
    from robustbench_lite.executors.slots import find_slots
    from robustbench_lite.runner import prepare_torch

    where = find_slots(device, 1, 1)[0].device
    prepare_torch(where, None)
    registry = app.registry()
    chosen, problems, many = _chosen(registry, name, kind)
    found: list[dict[str, Any]] = []
    failed = sum(problem.severity == "error" for problem in problems)
    if not as_json:
        for problem in problems:
            click.echo(str(problem))
    for entry, selector in chosen:
        subject, suite = _subject(registry, entry, selector, dataset, data or app.data, where)
        if not as_json:
            click.echo(f"{entry.kind} {selector} ({' '.join(filter(None, (entry.distribution, entry.version)))})")
        outcomes = []
        for outcome in _run(subject, suite):
            outcomes.append(outcome)
            if not as_json and (not many or outcome.status == "failed" or outcome.fix):
                _print(outcome)
        counts = {status: sum(o.status == status for o in outcomes) for status in ("passed", "failed", "skipped")}
        failed += counts["failed"]
        if not as_json:
            click.echo(f"  {', '.join(f'{n} {status}' for status, n in counts.items() if n)}\n")
        found.append(
            {"kind": entry.kind, "id": entry.id, "selector": selector, "distribution": entry.distribution}
            | {"version": entry.version, "counts": counts, "checks": [o.to_json() for o in outcomes]}
        )
    if as_json:
        print_json({"objects": found, "problems": [problem.to_json() for problem in problems]})
    return 1 if failed else 0


def _chosen(registry: Registry, name: str, kind: str | None) -> tuple[list[tuple[Entry, str]], list[Problem], bool]:
    """The objects that a name stands for with their selectors, the problems of their plugin, and whether it is a namespace.

    Raises UnknownName, AmbiguousName, InvalidParameter.
    """
    from robustbench_lite.cli.show import find_anything
    from robustbench_lite.selectors import parse_selector

    namespaces = {plugin.namespace for plugin in registry.plugins}
    if name in namespaces:
        of_kind = [k for k in KINDS if kind in (None, k)]
        entries = [e for k in of_kind for e in registry.entries(k) if e.namespace == name]
        problems = [p for p in registry.problems if p.plugin == name]
        if not entries and not problems:
            raise UnknownName(f"{name} brings no {kind or 'object that can be checked'}", hint="rbl list")
        return [(e, e.id) for e in entries], problems, True
    try:
        entry = find_anything(registry, parse_selector(name).name, kind)
    except UnknownName as error:
        raise UnknownName(error.message, hint=error.hint.replace("rbl show", "rbl check")) from None
    if entry.kind not in KINDS:
        raise UnknownName(f"there is no conformance suite for a {entry.kind}", hint=f"rbl show {entry.id}")
    return [(entry, name)], [], False


def _run(subject: Subject, suite: Suite[Any]) -> Iterator[Outcome]:
    """The outcome of each check; what plugins print meanwhile goes to standard error."""
    for check in suite.checks:
        with redirect_stdout(sys.stderr):
            outcome = check.run(subject)
        yield outcome


def _subject(
    registry: Registry, entry: Entry, selector: str, dataset: str, data: Path, device: str
) -> tuple[Subject, Suite[Any]]:
    from robustbench_lite import testing

    if entry.kind == "attack":
        return testing.AttackSubject(registry, selector, device), testing.ATTACK_SUITE
    if entry.kind == "defense":
        subject = testing.DefenseSubject(registry, selector, dataset, data, device)
        with suppress(testing.Skipped):  # absent data are for the checks to say; a wrong request ends here
            _ = subject.images
        return subject, testing.DEFENSE_SUITE
    if entry.kind == "dataset":
        return testing.DatasetSubject(registry, selector, data), testing.DATASET_SUITE
    metric = testing.MetricSubject(registry, selector)
    return metric, testing.metric_suite(metric)


def _print(outcome: Outcome) -> None:
    word = "FAILED" if outcome.status == "failed" else outcome.status
    text = outcome.proves if outcome.status == "passed" else outcome.reason
    click.echo(f"  {word:<{_WIDTH}} {outcome.check:<26} {text}")
    if outcome.fix:
        click.echo(f"  {'':<{_WIDTH}} {'':<26} fix: {outcome.fix}")
