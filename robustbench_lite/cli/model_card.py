"""What ``rbl show`` says of a defense's weights: the model cards that training wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from robustbench_lite.cli.app import counted, print_table
from robustbench_lite.errors import RblError

if TYPE_CHECKING:
    from robustbench_lite.registry import Registry


def find_cards(registry: Registry, selector: str, dataset: str | None) -> list[dict[str, Any]]:
    """For each data set that a defense has weights for: file, origin, sha256 and card, or why they cannot be used.

    dataset: that one alone, and then without weights the reason is the one entry.
    """
    from robustbench_lite.resolve import resolve
    from robustbench_lite.selectors import parse_selector
    from robustbench_lite.weights import datasets_with_weights, find_weights, rbl_home, read_card

    found = resolve(registry, "defense", selector)
    if dataset is None:
        known = datasets_with_weights(found.entry, found.instance, rbl_home())
    else:
        known = [parse_selector(dataset).name.rpartition("/")[2]]
    cards: list[dict[str, Any]] = []
    for name in known:
        try:
            file = find_weights(found.entry, found.instance, name, given=None, home=rbl_home())
            path = {"file": str(file.path), "origin": file.origin, "sha256": file.sha256}
            cards.append({"dataset": name, **path, "card": read_card(file.path)})
        except RblError as error:
            cards.append({"dataset": name, "problem": str(error)})
    return cards


def show_card(found: Mapping[str, Any]) -> None:
    """Print one entry of ``find_cards``."""
    click.echo(f"\nWeights for {found['dataset']}\n")
    if "problem" in found:
        click.echo(found["problem"])
        return
    facts = [(name, found[name]) for name in ("file", "origin", "sha256")]
    print_table(facts + _facts(found["card"]) if found["card"] else [*facts, ("model card", "none")], ("", ""), "")


def _facts(card: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """A card in a table, whose older ones say less."""
    recipe, held_out = card.get("recipe") or {}, card.get("held_out", {})
    epochs = card.get("epochs", {})
    facts: list[tuple[str, Any]] = [
        ("parameters", _pairs(card.get("parameters", {}))),
        *((name, _part(card[name])) for name in ("method", "teacher", "base") if name in card),
        ("seed", card.get("seed")),
        ("recipe", _pairs(recipe)),
        ("held out", f"{counted(held_out.get('n', 0), 'example')}: {_pairs({k: v for k, v in held_out.items() if k != 'n'})}"),
    ]
    if recipe and epochs:
        facts.append(("kept", f"epoch {epochs['kept']} of {recipe['epochs']} ({recipe.get('early_stop', 'last')})"))
        facts += [(f"{name} epoch", _pairs(epochs[name])) for name in ("best", "last")]
    if card.get("overfit"):
        facts.append(("overfit", "one step of attack stopped at far more accuracy than ten: see the history in the card"))
    facts.append(("made on", _pairs({name: card.get(name) for name in ("device", "precision", "threads") if name in card})))
    facts.append(("versions", _pairs(card.get("packages", {}))))
    return facts


def _part(part: Mapping[str, Any]) -> str:
    weights = f", weights {', '.join(part['weights'])}" if "weights" in part else ""
    return f"{part['label']}, version {part['version']}{weights}"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={round(value, 4) if isinstance(value, float) else value}" for name, value in values.items())
