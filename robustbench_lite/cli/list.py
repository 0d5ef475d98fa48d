"""``rbl list``: what is installed."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from robustbench_lite.cli.app import App, json_option, print_json, print_table
from robustbench_lite.errors import UsageError, did_you_mean
from robustbench_lite.specs import AttackSpec, DefenseSpec, MetricSpec, Spec

KINDS = ("attacks", "defenses", "datasets", "metrics", "protocols")


class Kind(click.ParamType):  # type: ignore[type-arg]  # generic in some versions of click only
    """One of KINDS, or its singular; suggests the nearest for anything else."""

    name = "kind"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(kind) for kind in KINDS if kind.startswith(incomplete)]

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value in KINDS or f"{value}s" in KINDS:
            return str(value).removesuffix("s") + "s"
        raise UsageError(f"no kind {value!r} of objects", hint=did_you_mean(str(value), KINDS) or f"one of {', '.join(KINDS)}")


@click.command("list")
@click.argument("kind", type=Kind(), required=False, metavar="KIND")
@json_option
@click.pass_obj
def command(app: App, kind: str | None, as_json: bool) -> None:
    """List what is installed. KIND: attacks, defenses, datasets, metrics or protocols; all of them where none is given."""
    registry = app.registry()
    chosen = [k for k in KINDS if kind in (None, k)]
    entries = {k: registry.entries(k.removesuffix("s")) for k in chosen}
    if as_json:
        print_json([entry.to_json() for found in entries.values() for entry in found])
        return
    for name, found in entries.items():
        if kind is None:
            click.echo(f"\n{name}")
        rows = [(e.id, _traits(e.spec), e.spec.summary, e.spec.reference, e.distribution) for e in found]
        if name == "protocols":
            from robustbench_lite.protocol import builtin_protocols

            built_in = builtin_protocols().values()
            rows = [(p.name, f"version {p.version}", p.summary, p.reference, "robustbench-lite") for p in built_in] + rows
        print_table(rows, ("id", "traits", "summary", "reference", "from"), f"no {name} installed: pip install rbl-{name}")


def _traits(spec: Spec) -> str:
    """The one thing about it that decides where it can be used."""
    if isinstance(spec, AttackSpec):
        return f"{','.join(spec.norms)} {spec.access}"
    if isinstance(spec, DefenseSpec):
        marks = [spec.kind, "stochastic" * spec.stochastic, "bpda" * (not spec.differentiable), "rejects" * spec.rejects]
        return " ".join(mark for mark in marks if mark)
    if isinstance(spec, MetricSpec):
        return f"per {spec.scope}, {spec.direction} is better" if spec.direction != "none" else f"per {spec.scope}"
    return ""
