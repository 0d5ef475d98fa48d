"""``rbl train``: train a defense and keep its weights where ``rbl run`` finds them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_lite.cli.app import App, json_option, print_json, warn
from robustbench_lite.errors import InvalidParameter, PluginError, UsageError
from robustbench_lite.specs import DefenseSpec

if TYPE_CHECKING:
    from robustbench_lite.registry import Registry
    from robustbench_lite.resolve import Resolved
    from robustbench_lite.training import TrainedDefense

# How many lines of progress a training run prints.
PROGRESS_LINES = 10


@click.command("train")
@click.argument("defense")
@click.option("--dataset", default="digits", show_default=True, help="Data set to train on.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A hyperparameter, as in 'pgd-at[eps=0.1]'.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of everything that is drawn.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, or one GPU: cuda:0.")
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads [all cores]; weights are the same for the same number."
)
@click.option("--data", type=click.Path(path_type=Path), help="Folder of data sets [RBL_DATA, or ./data].")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="File to write [below RBL_HOME].")
@json_option
@click.pass_obj
def command(
    app: App,
    defense: str,
    dataset: str,
    settings: tuple[str, ...],
    seed: int,
    device: str,
    threads: int | None,
    data: Path | None,
    out: Path | None,
    as_json: bool,
) -> int:
    """Train DEFENSE and keep its weights where rbl run finds them.

    Weights are kept by defense, hyperparameters and data set, so that variants such as 'pgd-at[eps=0.1]' live side by side.
    Training again overwrites them. A file written with --out is used by rbl run --weights DEFENSE=FILE.
    """
    if out is not None and out.suffix != ".safetensors":
        raise UsageError(f"--out {out} is no .safetensors file", hint=f"--out {out.with_suffix('.safetensors')}")
    registry = app.registry()
    found, trained = find_trained(registry, defense, settings)

    from robustbench_lite.executors.slots import find_slots
    from robustbench_lite.resolve import ResolvedDefense, resolve_dataset, resolve_parts
    from robustbench_lite.runner import prepare_torch
    from robustbench_lite.training import model_card, train
    from robustbench_lite.weights import rbl_home, save_weights, trained_path

    where = find_slots(device, 1, 1)[0]
    chosen = resolve_dataset(registry, dataset, data or app.data)
    declared = found.entry.spec
    if isinstance(declared, DefenseSpec) and declared.datasets and chosen.info.name not in declared.datasets:
        raise UsageError(f"{found.label} works on {', '.join(declared.datasets)}, not on {chosen.info.name}")
    parts = resolve_parts(registry, found, chosen.info, dataset)
    teacher = parts.get("teacher")
    prepare_torch(where.device, threads)
    began = time.monotonic()
    warn(f"training {found.label} on {chosen.label} with seed {seed} on {where.device}")
    result = train(
        trained,
        chosen.bundle,
        seed=seed,
        device=where.device,
        teacher=teacher.build() if isinstance(teacher, ResolvedDefense) else None,
        progress=_print_progress(began),
    )
    path = out or trained_path(found.entry, found.instance, chosen.info.name, rbl_home())
    card = model_card(found.entry.id, declared.version, found.parameters, chosen.bundle, seed, result, _identities(parts))
    digest = save_weights(path, result.module.state_dict(), card)
    if as_json:
        print_json({"path": str(path), "sha256": digest, "card": card})
        return 0
    click.echo(f"{found.label} on {chosen.label}: {_measured(result.metrics)} on {card['held_out']['n']} held-out examples")
    click.echo(f"weights: {path}")
    shown = f"'{found.label}'" if "[" in found.label else found.label
    given = f" --weights {shown}={path}" if out is not None else ""
    click.echo(f"next:    rbl run --defense {shown} --dataset {_quoted(dataset)}{given}")
    return 0


def find_trained(registry: Registry, text: str, settings: tuple[str, ...]) -> tuple[Resolved, TrainedDefense]:
    """The defense to train, with ``--set`` added to the selector's parameters.

    Raises UsageError for a defense that is not trained, InvalidParameter for what does not fit.
    """
    from robustbench_lite.resolve import resolve

    found = resolve(registry, "defense", text, dict(_assignment(setting) for setting in settings))
    spec = found.entry.spec
    if isinstance(spec, DefenseSpec) and spec.kind == "wrapper":
        base = getattr(found.instance, "base", "")
        raise UsageError(f"{found.label} wraps another defense and has no weights of its own", hint=f"rbl train {base}")
    if isinstance(spec, DefenseSpec) and spec.kind != "trained":
        raise UsageError(f"{found.label} brings its own weights: there is nothing to train", hint=f"rbl show {found.entry.id}")

    from robustbench_lite.training import TrainedDefense

    if not isinstance(found.instance, TrainedDefense):
        raise PluginError(
            f"defense {found.entry.id} of {found.entry.distribution} is declared kind='trained' and is no TrainedDefense",
            hint="derive its dataclass from robustbench_lite.TrainedDefense",
        )
    return found, found.instance


def _assignment(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise InvalidParameter(f"--set {text!r} must read KEY=VALUE", hint="for example --set epochs=30")
    return key.strip(), value.strip()


def _print_progress(began: float) -> Any:
    def show(epoch: dict[str, float]) -> None:
        number, total = int(epoch["epoch"]), int(epoch["epochs"])
        if number * PROGRESS_LINES // total == (number - 1) * PROGRESS_LINES // total:
            return
        left = (time.monotonic() - began) / number * (total - number)
        warn(f"epoch {number}/{total}: loss {epoch['loss']:.3f}, {_measured(epoch)}, {left:.0f} s left")

    return show


def _measured(metrics: dict[str, float]) -> str:
    found = f"clean {metrics['clean']:.1%}"
    return found + (f", under PGD {metrics['robust']:.1%}" if "robust" in metrics else "")


def _quoted(text: str) -> str:
    return f"'{text}'" if "[" in text else text


def _identities(parts: Mapping[str, Resolved]) -> dict[str, Any]:
    """What the card says of the method inside and of the teacher."""
    from robustbench_lite.resolve import ResolvedDefense

    return {name: part.spec() if isinstance(part, ResolvedDefense) else part.identity() for name, part in parts.items()}
