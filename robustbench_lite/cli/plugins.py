"""``rbl plugins``: which distributions bring what, and what is wrong with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from robustbench_lite.cli.app import App, json_option, print_json, print_table

if TYPE_CHECKING:
    from robustbench_lite.records import Problem


@click.command("plugins")
@click.option("--verify", is_flag=True, help="Also import every factory and check that its parameters can be validated.")
@click.option("--why", metavar="NAME", help="Say why the plugin or object of this name is there, or is not.")
@json_option
@click.pass_obj
def command(app: App, verify: bool, why: str | None, as_json: bool) -> int:
    """List distributions, versions, what each brings, and what is wrong. Exits with 1 where something is."""
    registry = app.registry()
    problems = list(registry.problems) + (registry.verify() if verify or why else [])
    problems = list(dict.fromkeys(problems))
    if why:
        return _why(app, why, [p for p in problems if _same(why, p.plugin, p.distribution) or why in p.object], as_json)
    if as_json:
        print_json({"plugins": [p.to_json() for p in registry.plugins], "problems": [p.to_json() for p in problems]})
    else:
        rows = [
            (
                p.distribution or "(file)",
                p.version,
                p.namespace,
                ", ".join(f"{n} {kind}{'s' if n > 1 else ''}" for kind, n in p.counts.items() if n) or "nothing",
                "; ".join(sorted({q.severity for q in p.problems})) or "ok",
                p.origin,
            )
            for p in registry.plugins
        ]
        headers = ("distribution", "version", "namespace", "brings", "state", "origin")
        print_table(rows, headers, "no plugins installed: pip install rbl-attacks rbl-defenses rbl-datasets rbl-metrics")
        for problem in problems:
            click.echo(f"\n{problem}")
    return 1 if any(p.severity == "error" for p in problems) else 0


def _same(asked: str, *names: str) -> bool:
    """Whether one of the names is meant: as distributions go, whatever the case and the separators; a file without .py."""

    def plain(name: str) -> str:
        return name.removesuffix(".py").lower().replace("_", "-")

    return plain(asked) in map(plain, names)


def _why(app: App, name: str, problems: list[Problem], as_json: bool) -> int:
    """What is known about one name: where it comes from, or what keeps it from being there."""
    registry = app.registry()
    kinds = ("attack", "defense", "dataset", "metric", "protocol")
    entries = [e for k in kinds for e in registry.entries(k) if _same(name, e.id, e.spec.name, e.namespace, e.distribution)]
    plugins = [p for p in registry.plugins if _same(name, p.namespace, p.distribution)]
    if as_json:
        found = {"entries": [e.to_json() for e in entries], "problems": [p.to_json() for p in problems]}
        print_json(found | {"plugins": [p.to_json() for p in plugins]})
    else:
        for entry in entries:
            click.echo(f"{entry.kind} {entry.id}: from {entry.distribution} {entry.version}, module {entry.module}")
        for plugin in plugins:
            click.echo(f"plugin {plugin.namespace}: from {plugin.distribution} {plugin.version}, {plugin.origin}")
        for problem in problems:
            click.echo(str(problem))
        if not entries and not plugins and not problems:
            click.echo(
                f"{name} is unknown: no installed distribution has an entry point of that name in the group "
                f"'robustbench_lite', and none contributes an object of that name. Is it installed here? "
                f"python -m pip show {name}"
            )
    return 0 if entries and not any(p.severity == "error" for p in problems) else 1
