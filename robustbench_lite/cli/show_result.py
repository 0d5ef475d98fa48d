"""One stored result, for ``rbl show``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from robustbench_lite.cli.app import print_table
from robustbench_lite.cli.verdicts import print_verdicts
from robustbench_lite.errors import AmbiguousName, UnknownName, did_you_mean
from robustbench_lite.leaderboard.labels import meant
from robustbench_lite.leaderboard.text import plain
from robustbench_lite.threat import Threat

if TYPE_CHECKING:
    from robustbench_lite.cell import Cell
    from robustbench_lite.store import Store
    from robustbench_lite.verdict import Verdict

UNDER = " under "
_KEY = re.compile(r"[0-9a-f]{4,64}")


def may_be_a_result(name: str) -> bool:
    """Whether ``rbl show`` takes a name that no plugin has for a stored result."""
    return UNDER in name or _KEY.fullmatch(name) is not None


def find_cell(store: Store, name: str, dataset: str | None, threat: Threat | None) -> Cell:
    """The stored cell of a key's first digits, or of ``pgd-at under apgd-ce``, by the labels that tables show.

    Of both parts the name alone is enough where only one label has it (``fmn`` for ``fmn[steps=40]``).

    Raises UnknownName, AmbiguousName.
    """
    if UNDER not in name:
        return store.get(name)
    every = [cell for cell in store.cells() if dataset in (None, cell.spec["dataset"]["name"])]
    before, _, after = name.partition(UNDER)
    defense = meant(before.strip(), (cell.spec["defense"]["label"] for cell in every))
    attack = meant(after.strip(), (c.spec["attack"]["label"] for c in every if c.spec["defense"]["label"] == defense))
    found = [c for c in every if (c.spec["defense"]["label"], c.spec["attack"]["label"]) == (defense, attack)]
    if threat is not None:
        found = [cell for cell in found if Threat.parse(cell.spec["threat"]).answers(threat)]
    if len(found) == 1:
        return found[0]
    if found:
        listed = "\n".join(f"    rbl show {c.key[:12]}    {_asked(c)}" for c in sorted(found, key=_asked))
        raise AmbiguousName(f"{len(found)} results are called {name!r}", hint=f"name one by its key:\n{listed}")
    names = sorted({f"{c.spec['defense']['label']}{UNDER}{c.spec['attack']['label']}" for c in every})
    raise UnknownName(
        f"no result in {store.path} is called {name!r}", hint=did_you_mean(name, names) or "rbl status --json lists them"
    )


def _asked(cell: Cell) -> str:
    spec = cell.spec
    protocol = f"{spec['protocol']['name']}@{spec['protocol']['version']}"
    weights = f", weights {spec['defense']['weights'][:8]}" if spec["defense"].get("weights") else ""
    versions = f"versions {spec['defense']['version']} and {spec['attack']['version']}"
    asked = f"n = {spec['protocol'].get('n')}, seed {spec['seed']}"
    return f"{spec['dataset']['name']}, {spec['threat']}, {protocol}, {asked}, {versions}{weights}"


def print_account(found: Mapping[str, Any]) -> None:
    """What ``account`` found, for people."""
    spec = found["asked"]
    click.echo(f"{plain(spec['defense']['label'])}{UNDER}{plain(spec['attack']['label'])}\n")
    print_table(_facts(found), ("", ""), "")
    numbers = found["numbers"]
    if numbers is None:
        return
    click.echo()
    print_table(_results(numbers), ("", ""), "")
    if found["at"] is None:
        click.echo(f"\nAt any size; rbl show ... --threat {spec['threat']}:EPS counts what is beaten within a radius.")
    click.echo("\nPer example:\n")
    spread = {"size of what beat it": numbers["size"], **numbers["cost"]}
    rows = [[name, *(_number(values[key]) for key in ("mean", "min", "median", "max"))] for name, values in spread.items()]
    print_table(rows, ("", "mean", "least", "median", "most"), "")
    click.echo("\nPer class:\n")
    rows = [
        [c["class"], c["n"], c["right"], c["robust"], ", ".join(f"{name} ({times})" for name, times in c["taken_for"].items())]
        for c in numbers["classes"]
    ]
    print_table(rows, ("class", "n", "right", "robust", "beaten ones are taken for"), "")


def print_checks(verdicts: Sequence[Verdict]) -> None:
    """What checks of the defense found: those that raise something one by one, of the others how many there are."""
    if not verdicts:
        return
    raised = [verdict for verdict in verdicts if verdict.outcome in ("fail", "warn")]
    counts = Counter(verdict.outcome for verdict in verdicts)
    said = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items()))
    click.echo(f"\nChecks of the defense: {said}\n" if raised else f"\nChecks of the defense: {said}")
    if raised:
        print_verdicts(raised, "")


def _facts(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    spec, environment = found["asked"], found["environment"]
    protocol, defense, attack = spec["protocol"], spec["defense"], spec["attack"]
    facts = [
        ("key", found["key"]),
        ("status", f"{found['status']}: {found['reason']}" if found["reason"] else found["status"]),
        ("data set", f"{spec['dataset']['label']}, {found['n']} of {protocol.get('n', 'unknown')} examples stored"),
        ("threat model", spec["threat"]),
        ("protocol", f"{protocol['name']}@{protocol['version']}, seed {spec['seed']}"),
        ("defense", f"{defense['id']} version {defense['version']} {_parameters(defense)}"),
        ("weights", defense.get("weights") or ""),
        ("in front of", (defense.get("base") or {}).get("label", "")),
        ("attack", f"{attack['id']} version {attack['version']} {_parameters(attack)}"),
        ("made of", ", ".join(member["label"] for member in attack.get("members", ()))),
        ("made on", ", ".join(surrogate["label"] for surrogate in attack.get("surrogates", ()))),
        ("origin", found["origin"]["said"] if found["origin"] else ""),
        ("took", f"{found['seconds']:.1f} s in {found['attempts']} attempt{'s' * (found['attempts'] != 1)}"),
        ("on", ", ".join(str(environment[key]) for key in ("device", "host", "platform") if environment.get(key))),
        ("with", ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items())),
    ]
    return [(name, value) for name, value in facts if value not in ("", None)]


def _parameters(part: Mapping[str, Any]) -> str:
    said = ", ".join(f"{name}={value}" for name, value in part.get("parameters", {}).items())
    return f"({said})" if said else ""


def _results(numbers: Mapping[str, Any]) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = [
        ("clean accuracy", _percent(numbers["clean_accuracy"])),
        ("robust accuracy", _percent(numbers["robust_accuracy"])),
        ("beaten", f"{len(numbers['beaten'])} of the {numbers['attacked']} that were attacked"),
    ]
    if numbers["unstable"]:
        rows.append(("unstable", f"{numbers['unstable']} beaten in the search but not on the judge's fresh passes"))
    rows += [("proposals", f"{count} {reason}") for reason, count in numbers["refused"].items()]
    rows += [("points", f"{count} {source}") for source, count in numbers["found"].items()]
    return rows + [("beaten by", f"{member}: {count}") for member, count in numbers["members"].items()]


def _percent(share: Mapping[str, float]) -> str:
    return f"{100 * share['value']:.1f} % [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
