"""``rbl show``: everything about one plugin object, or one stored result."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_lite.cli.app import App, json_option, open_store, print_json, print_table, store_option
from robustbench_lite.cli.model_card import find_cards, show_card
from robustbench_lite.cli.show_result import find_cell, may_be_a_result, print_account, print_checks
from robustbench_lite.errors import RblError, UnknownName, UsageError, did_you_mean
from robustbench_lite.specs import TRAINABLE, DefenseSpec

if TYPE_CHECKING:
    from robustbench_lite.protocol import Protocol
    from robustbench_lite.records import Entry
    from robustbench_lite.registry import Registry

PLUGIN_KINDS = ("attack", "defense", "dataset", "metric", "protocol")


@click.command("show")
@click.argument("name")
@click.option("--kind", type=click.Choice(PLUGIN_KINDS), help="Where one name stands for objects of several kinds.")
@click.option("--dataset", help="Of a defense, the weights for this data set; of results, those on it [all that there are].")
@click.option("--threat", help="Of results, the threat model.")
@store_option
@json_option
@click.pass_obj
def command(
    app: App, name: str, kind: str | None, dataset: str | None, threat: str | None, store: Path | None, as_json: bool
) -> None:
    """Show summary, paper, traits and parameters (type, default, meaning) of NAME; of a trained defense also its model card.

    A defense may have parameters: 'pgd-at[eps=0.1]' shows the weights that were trained with them. NAME may also be that of a
    stored result, 'pgd-at under apgd-ce', or the first digits of its key.
    """
    registry = app.registry()
    if kind is None and may_be_a_result(name) and not _is_registered(registry, name):
        _show_result(store, name, dataset, threat, as_json)
        return
    selector, name = name, name.partition("[")[0]
    if kind in (None, "protocol") and (protocol := _protocol(registry, name, kind)):
        _show_protocol(protocol, as_json)
        return
    entry = find_anything(registry, name, kind)
    try:
        from robustbench_lite.parameters import describe

        parameters = describe(registry.factory(entry))
        problem = ""
    except RblError as error:
        parameters, problem = [], str(error)
    cards = find_cards(registry, selector, dataset) if _has_weights(entry, selector, dataset) and not problem else []
    if as_json:
        found = entry.to_json() | {"parameters": [p.to_json() for p in parameters], "problem": problem}
        print_json(found | ({"weights": cards} if entry.kind == "defense" else {}))
        return
    click.echo(f"{entry.kind} {entry.id}\n{entry.spec.summary}\n")
    print_table(_facts(entry), ("", ""), "")
    if problem:
        click.echo(f"\nIt cannot be used: {problem}")
        return
    click.echo("\nParameters, set as " + f"{entry.spec.name}[name=value,...]\n" if parameters else "\nNo parameters.")
    rows = [(p.name, p.type, "required" if p.required else p.default, ", ".join(p.constraints), p.doc) for p in parameters]
    print_table(rows, ("name", "type", "default", "constraints", "meaning"), "")
    for card in cards:
        show_card(card)


def _has_weights(entry: Entry, selector: str, dataset: str | None) -> bool:
    """Whether to look for weights. Raises UsageError where they, or parameters, are asked for and there can be none."""
    spec = entry.spec
    if isinstance(spec, DefenseSpec) and spec.kind in (*TRAINABLE, "pretrained"):
        return True
    if dataset is not None:
        raise UsageError(f"{entry.kind} {entry.id} has no weights of its own", hint=f"rbl show {entry.id}")
    if selector not in (entry.id, entry.spec.name):
        raise UsageError(f"parameters select a defense's weights, and {entry.id} has none", hint=f"rbl show {entry.id}")
    return False


def _is_registered(registry: Registry, name: str) -> bool:
    return any(name in (entry.id, entry.spec.name) for kind in PLUGIN_KINDS for entry in registry.entries(kind))


def _show_result(store: Path | None, name: str, dataset: str | None, threat: str | None, as_json: bool) -> None:
    from robustbench_lite.diagnostics.record import known_verdicts
    from robustbench_lite.leaderboard.account import account
    from robustbench_lite.threat import Threat

    limit = None if threat is None else Threat.parse(threat)
    opened = open_store(store)
    cell = find_cell(opened, name, dataset, limit)
    result = cell.load_for_tables()
    found = account(result, limit, cell.origin)
    verdicts = known_verdicts(opened, cell.spec, limit or result.threat)
    if as_json:
        print_json(found | {"verdicts": [asdict(verdict) for verdict in verdicts]})
    else:
        print_account(found)
        print_checks(verdicts)


def _protocol(registry: Registry, name: str, kind: str | None) -> Protocol | None:
    """The protocol of that name, of the core or of a plugin; None where another kind of object may be meant."""
    from robustbench_lite.protocol import contributed_protocols, find_protocol

    others = [e for k in PLUGIN_KINDS[:-1] for e in registry.entries(k) if name in (e.id, e.spec.name)]
    if kind is None and others:
        return None
    try:
        return find_protocol(name, contributed_protocols(registry))
    except UnknownName:
        if kind is not None:
            raise
        return None


def _show_protocol(protocol: Protocol, as_json: bool) -> None:
    if as_json:
        print_json({"kind": "protocol", **protocol.model_dump(mode="json")})
        return
    click.echo(f"protocol {protocol.name}\n{protocol.summary}\n")
    facts: list[tuple[str, Any]] = [("paper", protocol.reference)] if protocol.reference else []
    facts += protocol.settings().items()
    facts += [("naive", ", ".join(protocol.naive))] if protocol.naive else []
    facts += [("diagnose", "expensive checks, too")] * protocol.diagnose
    for attack, values in protocol.attacks.items():
        facts.append((attack, ", ".join(f"{key}={value}" for key, value in values.items())))
    print_table(facts, ("", ""), "")
    click.echo()
    rules = [*protocol.datasets.items(), ("others", protocol.default)]
    rows = [(name, ", ".join(r.threats) or "as asked for", "all" if r.n is None else r.n) for name, r in rules]
    print_table(rows, ("data set", "threat models", "n"), "")


def _facts(entry: Entry) -> list[tuple[str, Any]]:
    """Field and value of its spec, with empty ones left out."""
    facts: list[tuple[str, Any]] = [("paper", entry.spec.reference)] if entry.spec.reference else []
    for field in fields(entry.spec):
        value = getattr(entry.spec, field.name)
        if field.name in ("name", "summary", "reference", "weights_sha256") or value in ("", (), {}):
            continue
        facts.append((field.name.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, tuple) else value))
    return [*facts, ("from", f"{entry.distribution} {entry.version}")]


def find_anything(registry: Registry, name: str, kind: str | None) -> Entry:
    """The one object of that name, of any kind unless one is given. Raises UnknownName, AmbiguousName."""
    if kind is not None:
        return registry.get(kind, name)
    found = [e for k in PLUGIN_KINDS for e in registry.entries(k) if name in (e.id, e.spec.name)]
    if len({e.kind for e in found}) > 1:
        kinds = sorted({e.kind for e in found})
        raise UnknownName(
            f"{name!r} is the name of several kinds: {', '.join(kinds)}", hint=f"rbl show {name} --kind {kinds[0]}"
        )
    if found:
        return registry.get(found[0].kind, name)
    near = did_you_mean(name, [n for k in PLUGIN_KINDS for e in registry.entries(k) for n in (e.id, e.spec.name)])
    raise UnknownName(f"nothing is registered under the name {name!r}", hint=near or "rbl list says what there is")
