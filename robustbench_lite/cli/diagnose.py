"""``rbl diagnose``: look for signs that a defense only seems robust, or that an attack failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_lite.cli.app import App, json_option, print_json, print_table, store_option, warn
from robustbench_lite.cli.verdicts import print_verdicts
from robustbench_lite.errors import PluginError, RblError, UsageError
from robustbench_lite.request import RunRequest, load_request

if TYPE_CHECKING:
    from robustbench_lite.diagnostics.catalogue import Check
    from robustbench_lite.diagnostics.indicators import Indicators
    from robustbench_lite.runner import Workbench
    from robustbench_lite.threat import Threat
    from robustbench_lite.verdict import Verdict


@click.command("diagnose")
@click.option("--defense", required=True, help="The defense: pgd-at, 'jpeg[base=pgd-at,quality=75]'.")
@click.option("--dataset", help="Its data set [digits].")
@click.option("--threat", "threats", multiple=True, help="Threat models to attack it in [the protocol's].")
@click.option("--protocol", help="Name or YAML file of an evaluation protocol [quick].")
@click.option("--seed", type=int, help="Seed of attacks and stochastic defenses [0].")
@click.option(
    "--n", "examples", type=click.IntRange(min=1), help="Look at the first N examples [64; 128 where it is attacked]."
)
@click.option(
    "--checks", multiple=True, metavar="NAME,...", help="Only these checks, by name or code: zero-gradients, D6 [all]."
)
@click.option("--attack", help="Also say why this attack fails where it does: 'pgd[steps=10]'.")
@click.option("--weights", multiple=True, metavar="DEFENSE=FILE", help="Weights for a defense.")
@store_option
@click.option("--data", type=click.Path(path_type=Path), help="Folder of data sets [RBL_DATA, or ./data].")
@click.option("--device", help="cpu, cuda:0 [the first GPU, or the CPU].")
@json_option
@click.pass_obj
def command(
    app: App,
    /,
    defense: str,
    threats: tuple[str, ...],
    examples: int | None,
    checks: tuple[str, ...],
    attack: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Look for signs that a defense only seems robust: masked gradients, undeclared randomness, and the like.

    Checks of stored results are made where the store holds some. Verdicts are stored: what was found is not looked for again.
    Exits with 1 where a check fails.
    """
    from robustbench_lite.diagnostics.catalogue import CHECKS, find_checks

    given = {key: value for key, value in options.items() if value not in (None, ())}
    request = load_request(None, {**given, "defense": [defense], "threat": threats or None})
    wanted = find_checks(word for text in checks for word in text.split(",")) if checks else CHECKS
    found = []
    for model in _models(app, request, defense, examples):
        verdicts = model.verdicts(wanted)
        found.append((model, verdicts, model.indicators(attack) if attack else None))
    if as_json:
        print_json([_json(*each) for each in found])
    else:
        for each in found:
            _print(*each)
    return 1 if any(verdict.outcome == "fail" for _, verdicts, _ in found for verdict in verdicts) else 0


@dataclass(frozen=True, kw_only=True)
class _Model:
    """One defense under one threat model, planned as ``rbl run`` would: the verdicts are the same, and stored in one place.

    spec: what all questions about it have in common; files: of its weights. examples: on how many; None for what is usual.
    """

    request: RunRequest
    spec: dict[str, Any]
    threat: Threat
    examples: int | None
    files: Mapping[str, str]
    bench: Workbench
    device: str

    @property
    def title(self) -> str:
        return f"{self.spec['defense']['label']} ({self.spec['dataset']['label']}, {self.threat})"

    def verdicts(self, wanted: Sequence[Check]) -> tuple[Verdict, ...]:
        """What the checks find; those that are not stored are made."""
        from robustbench_lite.diagnostics.catalogue import Cost, combine
        from robustbench_lite.diagnostics.plan import planned
        from robustbench_lite.diagnostics.record import Record, question, result_verdicts
        from robustbench_lite.diagnostics.work import run_checks
        from robustbench_lite.runner import WorkItem
        from robustbench_lite.store import Store

        store, names = Store.open(self.request.store), {check.name for check in wanted}
        found = list(result_verdicts(store, self.spec, self.threat))
        costs: tuple[Cost, ...] = ("cheap", "expensive")
        for cost in costs:
            spec = question(self.spec, cost, self.threat, self.examples)
            asked = planned(self.title, spec, cost, self.spec["protocol"]["n"], self.files, store, wanted)
            if asked.checks:
                run_checks(WorkItem.of(asked, self.request, self.device, asked.checks), self.bench, _follow)
            found += Record(store, spec).verdicts()
        for message in store.messages:
            warn(message)
        return tuple(verdict for verdict in combine(found) if verdict.check in names)

    def indicators(self, attack: str) -> Indicators:
        """Why an attack fails where it does."""
        from robustbench_lite.diagnostics.catalogue import NotApplicable
        from robustbench_lite.diagnostics.indicators import indicate
        from robustbench_lite.diagnostics.plan import planned
        from robustbench_lite.diagnostics.record import question
        from robustbench_lite.diagnostics.subject import Subject
        from robustbench_lite.runner import WorkItem

        spec = question(self.spec, "expensive", self.threat, self.examples)
        item = planned(self.title, spec, "expensive", self.spec["protocol"]["n"], self.files, None)
        try:
            return indicate(Subject.of(WorkItem.of(item, self.request, self.device), self.bench), attack)
        except NotApplicable as reason:
            raise UsageError(f"{attack} cannot be looked at on {self.title}: {reason}") from reason


def _models(app: App, request: RunRequest, defense: str, examples: int | None) -> Iterable[_Model]:
    """The defense under each threat model."""
    import json

    from robustbench_lite.executors.slots import find_slots
    from robustbench_lite.keys import canonical_json
    from robustbench_lite.protocol import contributed_protocols, find_protocol
    from robustbench_lite.resolve import resolve_dataset, resolve_defense
    from robustbench_lite.runner import Workbench, prepare_torch
    from robustbench_lite.threat import Threat

    registry = app.registry()
    protocol = find_protocol(request.protocol, contributed_protocols(registry))
    (dataset_text,) = request.dataset
    dataset = resolve_dataset(registry, dataset_text, request.data)
    found = resolve_defense(registry, defense, dataset.info, request.weights, dataset=dataset.label)
    rules = protocol.rules(dataset.info.name)
    threats = request.threat or rules.threats
    if not threats:
        raise UsageError(
            f"protocol {protocol.name} sets no threat model for data set {dataset.label}",
            hint=f"rbl diagnose --defense {defense} --dataset {dataset_text} --threat linf:8/255",
        )
    try:
        declared = found.spec()
    except RblError:
        raise
    except Exception as error:  # a module that brings its own weights is built to tell them
        raise PluginError(f"{found.label} cannot be built: {type(error).__name__}: {error}") from error
    subset = dataset.subset(rules.n)
    spec = {
        "protocol": protocol.settings() | {"n": len(subset)},
        "dataset": dataset.spec(subset),
        "defense": declared,
        "seed": request.seed,
    }
    (slot, *_) = find_slots(request.device, 1, 1)
    prepare_torch(slot.device, slot.threads)
    bench = Workbench(registry)
    for text in threats:
        yield _Model(
            request=request,
            spec=json.loads(canonical_json(spec)),
            threat=Threat.parse(text),
            examples=examples,
            files=found.weights_files(),
            bench=bench,
            device=slot.device,
        )


def _follow(event: dict[str, Any]) -> None:
    """Tell how far it is. Raises RblError where the model cannot be looked at."""
    if event["event"] == "verdict":
        warn(f"{event['label']}: {event['code']} {event['check']}: {event['outcome']}")
    if event["event"] == "finished" and event["status"] not in ("done", "cached"):
        raise RblError(f"{event['label']}: {event['reason']}")


def _print(model: _Model, verdicts: Sequence[Verdict], indicators: Indicators | None) -> None:
    from robustbench_lite.diagnostics.indicators import ADVICE

    click.echo(f"{model.title}\n")
    print_verdicts(verdicts, "no check to make")
    if indicators is not None:
        failed, n = int(indicators.failed.sum()), len(indicators.failed)
        click.echo(f"\nwhy {indicators.attack} fails, on average over the {failed} of {n} examples that it leaves\n")
        values = [(name, f"{value:.2f}", ADVICE[name] if value >= 0.1 else "") for name, value in indicators.means.items()]
        print_table(values, ("indicator of attack failure", "value", "what to try"), "")
    click.echo()


def _json(model: _Model, verdicts: Sequence[Verdict], indicators: Indicators | None) -> dict[str, Any]:
    spec = model.spec
    said: dict[str, Any] = {
        "defense": spec["defense"]["label"],
        "dataset": spec["dataset"]["label"],
        "threat": str(model.threat),
        "verdicts": [asdict(verdict) for verdict in verdicts],
    }
    if indicators is not None:
        said["indicators"] = {
            "attack": indicators.attack,
            "failed": int(indicators.failed.sum()),
            "n": len(indicators.failed),
            "values": indicators.means,
        }
    return said
