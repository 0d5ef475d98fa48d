"""Checking somebody's results on the defense that is installed here.

A result claims two things, and each has its own test. That an example was beaten is shown by its adversarial image, which the
judge measures again: distance, answer, success. That the others were *not* beaten no image can show; so the attack is run again
on whole shards, drawn at random by a seed that its maker could not know, and the outcomes are compared example by example.
Clean predictions are repeated on all examples. Only a result of which at least one shard was run again is called verified.

Where device and versions are those that the result was made with, every outcome must be the same; otherwise rounding may turn
``TOLERANCE`` of them. Points outside the threat model are refused in any case.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from robustbench_lite.cell import Cell
from robustbench_lite.errors import RblError
from robustbench_lite.judge import Judge
from robustbench_lite.ledger import Ledger
from robustbench_lite.outdated import difference
from robustbench_lite.plan import SHARD, count_shards
from robustbench_lite.provenance import Check
from robustbench_lite.resolve import attack_from_spec, dataset_from_spec, defense_from_fields
from robustbench_lite.results import SOURCES
from robustbench_lite.runner import Workbench, WorkItem, environment, load_examples, run_shard
from robustbench_lite.threat import Threat

if TYPE_CHECKING:
    from robustbench_lite.registry import Registry

Arrays = Mapping[str, npt.NDArray[Any]]

TOLERANCE = 0.02  # of outcomes that may differ on another device or with other versions
SIZES = 0.05  # relative: how much the size that a minimal-norm attack finds may differ there
SAME_SIZES = 1e-4  # and where nothing is different
NAMED = 5  # examples that are named as evidence
_SAME = ("device", "packages", "threads")
_SEEN = SOURCES.index("best seen by the target")


@dataclass(kw_only=True)
class _Tally:
    """Outcomes of one kind that were compared, and which were not the same. what: in words, after "of 200"."""

    what: str
    compared: int = 0
    differing: dict[int, str] = field(default_factory=dict)

    def add(self, index: npt.NDArray[Any], reasons: Mapping[str, npt.NDArray[np.bool_]]) -> None:
        """Compare examples; reasons: in words, and for which of them it holds."""
        self.compared += len(index)
        for said, rows in reasons.items():
            self.differing |= {int(i): said for i in index[rows] if int(i) not in self.differing}

    def said(self) -> str:
        """``of 200 examples run again 3 differ (2 are beaten here and not there: 5, 7; ...)``."""
        kinds: dict[str, list[int]] = {}
        for i, reason in self.differing.items():
            kinds.setdefault(reason, []).append(i)
        listed = "; ".join(
            f"{len(those)} {reason}: {', '.join(map(str, sorted(those)[:NAMED]))}{', ...' * (len(those) > NAMED)}"
            for reason, those in kinds.items()
        )
        return f"of {self.compared} {self.what} {len(self.differing)} differ" + (f" ({listed})" if listed else "")


class Verifier:
    """Checks results of one data set folder on one device. given: weights files by defense label.

    shards: how many of each result to run again, None for all. seed: draws them; what others could know draws nothing.
    """

    def __init__(
        self,
        registry: Registry,
        root: Path,
        *,
        shards: int | None = 1,
        seed: int,
        device: str = "cpu",
        micro_batch: int | None = None,
        given: Mapping[str, Path] | None = None,
    ) -> None:
        self._registry, self._root, self._bench = registry, root, Workbench(registry)
        self._shards, self._seed, self._device, self._micro_batch = shards, seed, device, micro_batch
        self._given = dict(given or {})
        self._here = environment(device)

    def check(self, cell: Cell, made_with: Mapping[str, Any]) -> Check:
        """What is to be said of a whole result. made_with: the environment that it says it was made in.

        What keeps it from being checked (a plugin, data or weights that are not here, a run that fails) is said in the outcome
        ``unverified``.
        """
        try:
            return self._check(cell, made_with)
        except RblError as error:
            return self._found("unverified", error.message)
        except Exception as error:
            return self._found("unverified", f"{type(error).__name__}: {error}")

    def _use_threads(self, made_with: Mapping[str, Any]) -> None:
        """As many as the result was made with, where that many are to be had: sums depend on how they are divided."""
        wanted = made_with.get("threads")
        if isinstance(wanted, int) and 1 <= wanted <= (os.cpu_count() or 1):
            torch.set_num_threads(wanted)
        self._here = environment(self._device)

    def _found(self, outcome: str, said: str, **facts: Any) -> Check:
        return Check.model_validate(
            {
                "outcome": outcome,
                "said": said,
                "when": datetime.now(UTC).isoformat(timespec="seconds"),
                "seed": self._seed,
                "device": self._here["device"],
                "packages": self._here["packages"],
                **facts,
            }
        )

    def _check(self, cell: Cell, made_with: Mapping[str, Any]) -> Check:
        spec, result = cell.spec, cell.load()
        item, problem = self._item(cell)
        if problem:
            return self._found("unverified", problem)
        total = count_shards(result.n)
        drawn = self._drawn(cell.key, total)
        no_attack = self._other_attack(item) if drawn else ""
        self._use_threads(made_with)
        same = all(made_with.get(name) == self._here[name] for name in _SAME)
        clean, images, again = _Tally(what="clean answers"), _Tally(what="images"), _Tally(what="examples run again")
        dataset = self._bench.dataset(item)
        subset = dataset.subset(item.n)
        if list(subset) != result.arrays["index"].tolist():
            return self._found("refuted", "its examples are not those of the data set's evaluation subset")
        for number in range(total):
            rows = slice(number * SHARD, (number + 1) * SHARD)
            claimed = {name: array[rows] for name, array in result.arrays.items()}
            ids = subset[rows]
            x, y = load_examples(dataset, ids)
            if not np.array_equal(y.numpy(), claimed["y"]):
                return self._found("refuted", f"the labels of shard {number} are not those of the data set")
            x, y = x.to(self._device), y.to(self._device)
            judge = self._judge(item, x, y, ids)
            correct, predicted = judge.correct.cpu().numpy(), judge.predicted.cpu().numpy()
            clean.add(claimed["index"], {"answers differ": predicted != claimed["clean_pred"]})
            kept = self._examples(cell, number)
            if kept is not None:
                if stranger := _stranger(kept, claimed, x):
                    return self._found("refuted", stranger)
                self._rejudge(item, judge, claimed, kept, x, y, correct, images, same=same)
            if number in drawn and not no_attack:
                fresh = run_shard(
                    spec,
                    self._bench.deployed(item),
                    attack_from_spec(self._registry, spec["attack"]),
                    x,
                    y,
                    ids,
                    number,
                    self._bench.surrogates(item),
                )
                if fresh.failure is not None:
                    no_attack = f"the attack fails here: {type(fresh.failure).__name__}: {fresh.failure}"
                    continue
                again.add(claimed["index"], _unlike(claimed, fresh.arrays, result.threat, same=same))
        return self._concluded([clean, images, again], drawn, total, no_attack, same=same)

    def _concluded(self, tallies: Sequence[_Tally], drawn: Sequence[int], total: int, lacking: str, *, same: bool) -> Check:
        compared = [each for each in tallies if each.compared]
        allowed = {each.what: 0 if same else max(1, math.floor(TOLERANCE * each.compared)) for each in compared}
        where = (
            "none may: device and versions are the same"
            if same
            else f"{TOLERANCE:.0%} may: it was made on another device or with other versions"
        )
        bad = [each for each in compared if len(each.differing) > allowed[each.what]]
        facts = {
            "shards": () if lacking else tuple(drawn),
            "of_shards": total,
            "rejudged": tallies[1].compared,
            "differ": sum(len(each.differing) for each in compared),
            "allowed": sum(allowed.values()),
        }
        if bad:
            return self._found("refuted", f"{'; '.join(each.said() for each in bad)}; {where}", **facts)
        said = f"{'; '.join(each.said() for each in compared)} ({where})"
        if lacking:
            return self._found("unverified", f"{lacking}; {said}", **facts)
        if not drawn:
            return self._found("unverified", f"no shard was run again; {said}", **facts)
        return self._found("verified", f"{len(drawn)} of {total} shards run again; {said}", **facts)

    def _item(self, cell: Cell) -> tuple[WorkItem, str]:
        """What a worker would be given, and why it cannot be had here; the latter empty where it can."""
        spec = cell.spec
        item = WorkItem(
            spec=spec,
            key=cell.key,
            label=cell.key,
            store=str(cell.store.path),
            data=str(self._root),
            device=self._device,
            n=spec["protocol"]["n"],
            micro_batch=self._micro_batch,
        )
        dataset = dataset_from_spec(self._registry, spec["dataset"], self._root)
        if changed := difference(spec["dataset"], dataset.spec(dataset.subset(item.n))):
            return item, f"data set {spec['dataset']['label']} is another here: {changed}"
        files: dict[str, str] = {}
        for part in (spec["defense"], *spec["attack"].get("surrogates", ())):
            defense = defense_from_fields(self._registry, part, dataset.info, self._given)
            if changed := difference(part, now := defense.spec()):
                known = {"weights"} & set(changed.split()) and f" ({now['weights']} here, {part['weights']} there)"
                return item, f"{part['label']} is another model here: {changed} differs{known or ''}"
            files |= defense.weights_files()
        return replace(item, files=files), ""

    def _other_attack(self, item: WorkItem) -> str:
        """Why the attack cannot be run again; empty where it can."""
        asked = {key: value for key, value in item.spec["attack"].items() if key != "surrogates"}
        try:
            here = attack_from_spec(self._registry, asked).spec()
        except RblError as error:
            return error.message
        changed = difference(asked, here)
        return f"attack {asked['label']} is another here: {changed} differs" if changed else ""

    def _drawn(self, key: str, total: int) -> list[int]:
        """The shards to run again: of each result others, which the seed and its key decide."""
        many = total if self._shards is None else min(self._shards, total)
        return sorted(random.Random(f"{self._seed}|{key}").sample(range(total), many))

    def _judge(self, item: WorkItem, x: torch.Tensor, y: torch.Tensor, ids: tuple[int, ...]) -> Judge:
        deployed = self._bench.deployed(item)
        deployed.fit_memory(x)
        numbers = torch.tensor(ids, dtype=torch.int64, device=x.device)
        return Judge(deployed, x, y, numbers, passes=item.spec["protocol"]["eval_draws"], key=str(item.spec["seed"]))

    @staticmethod
    def _examples(cell: Cell, number: int) -> dict[str, npt.NDArray[Any]] | None:
        return cell.read_examples(number) if cell.has_examples(number) else None

    def _rejudge(
        self,
        item: WorkItem,
        judge: Judge,
        claimed: Arrays,
        kept: Arrays,
        x: torch.Tensor,
        y: torch.Tensor,
        correct: npt.NDArray[np.bool_],
        images: _Tally,
        *,
        same: bool,
    ) -> None:
        """Judge the kept images as if the attack had just returned them, and compare what comes out with what is claimed."""
        threat = Threat.parse(item.spec["threat"])
        points = x.clone()
        order = np.argsort(claimed["index"])
        at = order[np.searchsorted(claimed["index"], kept["index"], sorter=order)]
        points[torch.from_numpy(at)] = torch.from_numpy(kept["x_adv"].copy()).to(x.device)
        # Of an example that was not beaten the clean image was kept, on which a stochastic defense may err at any time.
        at = at[claimed["success"][at] | (kept["x"] != kept["x_adv"]).reshape(len(at), -1).any(1)]
        rows = judge.correct.nonzero()[:, 0]
        minimal = item.spec["attack"]["goal"] == "minimal-norm"
        ledger = Ledger(x[rows], y[rows], threat, minimal=minimal, rejects=item.spec["defense"]["rejects"], budget=None)
        # A point that the target had seen was judged on draws of its own: let it be so again.
        seen = torch.from_numpy((claimed["source"] == _SEEN)[correct]).to(x.device)
        ledger.best = torch.where(seen.view(-1, *(1,) * (x.dim() - 1)), points[rows], x[rows])
        ledger.size = torch.where(seen, threat.size(x[rows], points[rows]), math.inf)
        ledger.broken = seen
        proposal = torch.where(seen.view(-1, *(1,) * (x.dim() - 1)), x[rows], points[rows])
        verdict = judge.judge(ledger, proposal, threat).arrays
        mine = {name: array[at] for name, array in claimed.items()}
        fresh = {name: array[at] for name, array in verdict.items()}
        images.add(mine["index"], _unlike(mine, fresh, threat, same=same))


def _stranger(kept: Arrays, claimed: Arrays, x: torch.Tensor) -> str:
    """Why kept images are none of the data set's; empty where they are."""
    rows = {int(i): row for row, i in enumerate(claimed["index"].tolist())}
    if any(int(i) not in rows for i in kept["index"].tolist()):
        return "it has images of examples that are not its own"
    here = x.cpu().numpy()[[rows[int(i)] for i in kept["index"].tolist()]]
    if kept["x"].shape != here.shape:
        return f"its clean images have shape {kept['x'].shape[1:]}, those of the data set {here.shape[1:]}"
    others = (kept["x"] != here).reshape(len(here), -1).any(1)
    if others.any():
        return f"{int(others.sum())} of its clean images are not those of the data set"
    return ""


def _unlike(claimed: Arrays, fresh: Arrays, threat: Threat, *, same: bool) -> dict[str, npt.NDArray[np.bool_]]:
    """In which examples two judgements differ, by how they do."""
    beaten, here = claimed["success"], fresh["success"]
    found = {
        "are beaten here and not there": here & ~beaten,
        "are beaten there and not here": beaten & ~here,
        "are taken for another class": beaten & here & (claimed["adv_pred"] != fresh["adv_pred"]),
    }
    if same or math.isinf(threat.eps):
        room = SAME_SIZES if same else SIZES
        both = beaten & here
        near = np.isclose(np.where(both, fresh["size"], 0), np.where(both, claimed["size"], 0), rtol=room, atol=1e-7)
        found["have another size"] = both & ~near
    if not same:  # which wrong class it is may turn on less than whether it is wrong
        del found["are taken for another class"]
    return found
