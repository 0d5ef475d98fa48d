"""``rbl train``: train a defense and keep its weights where ``rbl run`` finds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_lite.cli.app import App, json_option, print_json, warn
from robustbench_lite.cli.train_progress import TrainingProgress, measured
from robustbench_lite.errors import InvalidParameter, PluginError, UsageError
from robustbench_lite.specs import TRAINABLE, DefenseSpec, base_selectors

if TYPE_CHECKING:
    from robustbench_lite.data import DatasetBundle, DatasetInfo
    from robustbench_lite.ingredients import Ingredients
    from robustbench_lite.registry import Registry
    from robustbench_lite.resolve import Resolved
    from robustbench_lite.training import Checkpoint, FittedDefense, Recipe, TrainedDefense, TrainingResult


@click.command("train")
@click.argument("defense")
@click.option("--dataset", default="digits", show_default=True, help="Data set to train on.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A hyperparameter, as in 'pgd-at[eps=0.1]'.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of everything that is drawn.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, or one GPU: cuda:0.")
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads [all cores]; weights are the same for the same number."
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bf16", "fp16"]),
    default="float32",
    show_default=True,
    help="bf16 and fp16: mixed precision, on a GPU.",
)
@click.option(
    "--resume", "start", flag_value="resume", help="Go on from the checkpoint of an interrupted run, if there is one."
)
@click.option("--restart", "start", flag_value="restart", help="Start over although there is a checkpoint.")
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
    precision: str,
    start: str | None,
    data: Path | None,
    out: Path | None,
    as_json: bool,
) -> int:
    """Train DEFENSE and keep its weights where rbl run finds them.

    Weights are kept by defense, hyperparameters and data set, so that variants such as 'pgd-at[eps=0.1]' live side by side.
    Training again overwrites them. A file written with --out is used by rbl run --weights DEFENSE=FILE. A checkpoint is
    written beside them after each epoch, and removed at the end.
    """
    if out is not None and out.suffix != ".safetensors":
        raise UsageError(f"--out {out} is no .safetensors file", hint=f"--out {out.with_suffix('.safetensors')}")
    registry = app.registry()
    found = find_trained(registry, defense, settings)

    from robustbench_lite.executors.slots import find_slots
    from robustbench_lite.ingredients import find_ingredients
    from robustbench_lite.resolve import resolve_dataset
    from robustbench_lite.runner import prepare_torch
    from robustbench_lite.training import Checkpoint, identity, model_card
    from robustbench_lite.weights import rbl_home, save_weights, trained_path

    where = find_slots(device, 1, 1)[0]
    chosen = resolve_dataset(registry, dataset, data or app.data)
    declared = found.entry.spec
    if isinstance(declared, DefenseSpec) and declared.datasets and chosen.info.name not in declared.datasets:
        raise UsageError(f"{found.label} works on {', '.join(declared.datasets)}, not on {chosen.info.name}")
    ingredients = find_ingredients(registry, found, chosen.info, data or app.data, dataset)
    prepare_torch(where.device, threads)
    path = out or trained_path(found.entry, found.instance, chosen.info.name, rbl_home())
    made_of = identity(
        found.entry.id,
        declared.version,
        found.parameters,
        chosen.bundle,
        seed,
        recipe=recipe_of(found.instance, chosen.info),
        parts=ingredients.to_json(),
        device=where.device,
        precision=precision,
    )
    checkpoint = Checkpoint(path.with_suffix(".checkpoint"), made_of)
    if checkpoint.path.exists() and start is None:
        raise UsageError(
            f"an earlier training run left {checkpoint.path}, or one is at work on it now",
            hint="--resume goes on from there, --restart starts over",
        )
    warn(f"training {found.label} on {chosen.label} with seed {seed} on {where.device}")
    with TrainingProgress() as progress:
        result, state = _train(
            found.instance, chosen.bundle, ingredients, made_of, where.device, checkpoint, start == "resume", progress.show
        )
    card = model_card(made_of, result)
    digest = save_weights(path, state, card)
    checkpoint.remove()
    if card["overfit"]:
        warn("one step of attack stopped at far more accuracy than ten: catastrophic overfitting; see the card's history")
    if as_json:
        print_json({"path": str(path), "sha256": digest, "card": card})
        return 0
    click.echo(f"{found.label} on {chosen.label}: {measured(result.metrics)} on {card['held_out']['n']} held-out examples")
    click.echo(f"weights: {path}")
    shown = f"'{found.label}'" if "[" in found.label else found.label
    given = f" --weights {shown}={path}" if out is not None else ""
    click.echo(f"next:    rbl run --defense {shown} --dataset {_quoted(dataset)}{given}")
    return 0


def _train(
    defense: TrainedDefense | FittedDefense,
    bundle: DatasetBundle,
    ingredients: Ingredients,
    made_of: Mapping[str, Any],
    device: str,
    checkpoint: Checkpoint,
    resume: bool,
    progress: Callable[[dict[str, float]], None],
) -> tuple[TrainingResult, Mapping[str, Any]]:
    """The result, and the state to keep: with epochs, or at once for what is fitted."""
    from robustbench_lite.training import FittedDefense, fit, train

    if isinstance(defense, FittedDefense):
        if ingredients.base is None:
            raise PluginError(
                f"{type(defense).__name__} is declared kind='trained' and is fitted", hint="declare kind='fitted'"
            )
        return fit(defense, bundle, ingredients.base.build(), seed=made_of["seed"], device=device)
    result = train(
        defense,
        bundle,
        seed=made_of["seed"],
        device=device,
        precision=made_of["precision"],
        teacher=None if ingredients.teacher is None else ingredients.teacher.build(),
        extra=None if ingredients.extra is None else ingredients.extra.bundle.train,
        checkpoint=checkpoint,
        resume=resume,
        progress=progress,
    )
    return result, result.module.state_dict()


def recipe_of(instance: TrainedDefense | FittedDefense, info: DatasetInfo) -> Recipe | None:
    """The recipe of what is trained in epochs."""
    from robustbench_lite.training import TrainedDefense

    return instance.recipe(info) if isinstance(instance, TrainedDefense) else None


def find_trained(registry: Registry, text: str, settings: tuple[str, ...]) -> Resolved:
    """The defense to train, with ``--set`` added to the selector's parameters.

    Raises UsageError for a defense that is not trained, InvalidParameter for what does not fit.
    """
    from robustbench_lite.resolve import resolve

    found = resolve(registry, "defense", text, dict(_assignment(setting) for setting in settings))
    spec = found.entry.spec
    if not isinstance(spec, DefenseSpec):
        raise PluginError(f"{found.entry.id} is not a defense")
    if spec.kind == "wrapper":
        bases = "; ".join(f"rbl train {_quoted(base)}" for base in base_selectors(found.instance))
        raise UsageError(f"{found.label} wraps another defense and has no weights of its own", hint=bases)
    if spec.kind not in TRAINABLE:
        raise UsageError(f"{found.label} brings its own weights: there is nothing to train", hint=f"rbl show {found.entry.id}")

    from robustbench_lite.training import FittedDefense, TrainedDefense

    if not isinstance(found.instance, (TrainedDefense, FittedDefense)):
        raise PluginError(
            f"defense {found.entry.id} of {found.entry.distribution} is declared {spec.kind} and is none that can be trained",
            hint="derive its dataclass from robustbench_lite.TrainedDefense, or a fitted one's from FittedDefense",
        )
    return found


def _assignment(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise InvalidParameter(f"--set {text!r} must read KEY=VALUE", hint="for example --set epochs=30")
    return key.strip(), value.strip()


def _quoted(text: str) -> str:
    return f"'{text}'" if "[" in text else text
