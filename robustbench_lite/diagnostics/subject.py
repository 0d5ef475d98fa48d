"""The model that checks look at: a deployed defense with some examples, what is known of it, and attacks run on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from robustbench_lite import losses
from robustbench_lite.applicable import inapplicable, sized, unsupported
from robustbench_lite.composition import compose
from robustbench_lite.data import DatasetInfo
from robustbench_lite.deployed import Deployed
from robustbench_lite.diagnostics.catalogue import NotApplicable
from robustbench_lite.diagnostics.runs import Case, Mask, Run
from robustbench_lite.errors import RblError, UnknownName
from robustbench_lite.randomness import Randomness, keyed_draws, seeded_globally
from robustbench_lite.resolve import ResolvedAttack, resolve_attack
from robustbench_lite.results import CellResult
from robustbench_lite.runner import Workbench, WorkItem, load_examples, run_shard
from robustbench_lite.threat import Threat

if TYPE_CHECKING:
    from robustbench_lite.registry import Registry

Craft = Callable[[ResolvedAttack], Sequence[Deployed]]

# Examples of checks that run the model many times, in double precision or one by one.
FEW = 16
# Plain passes that are compared, and by how much their logits, scaled to length 1, may differ (AutoAttack's figures).
PASSES = 5
SAME_LOGITS = 1e-4
# How far logits may be apart between batches, relative to the largest of an image.
ROUNDING = 1e-5


class Subject:
    """A deployed defense and n examples of its data set: x (n, C, H, W), y (n,), ids (n,) their indices in the test split.

    spec: ``protocol``, ``dataset``, ``defense`` and ``seed`` as in a cell's spec. threat: what is attacked; None for checks
    that attack nothing. craft: deploys the surrogates of an attack.
    """

    def __init__(
        self,
        deployed: Deployed,
        x: Tensor,
        y: Tensor,
        ids: Tensor,
        *,
        spec: Mapping[str, Any],
        info: DatasetInfo,
        registry: Registry,
        threat: Threat | None = None,
        craft: Craft = lambda attack: (),
    ) -> None:
        self.deployed, self.x, self.y, self.ids = deployed, x, y, ids
        self.spec, self.info, self.registry, self.craft = spec, info, registry, craft
        self._threat = threat
        self._runs: dict[tuple[str, str, bytes], tuple[Run, Tensor]] = {}
        self._key = f"{spec['seed']}|diagnostics"
        deployed.fit_memory(x)

    @classmethod
    def of(cls, item: WorkItem, bench: Workbench) -> Subject:
        """The subject of a work item, as ``plan`` makes them."""
        dataset, deployed = bench.dataset(item), bench.deployed(item)
        ids = dataset.subset(item.n)[: item.spec["diagnostics"]["examples"]]
        x, y = load_examples(dataset, ids)

        def craft(attack: ResolvedAttack) -> Sequence[Deployed]:
            spec = {**item.spec, "attack": attack.spec()}
            return bench.surrogates(replace(item, spec=spec, files={**item.files, **attack.weights_files()}))

        return cls(
            deployed,
            x.to(item.device),
            y.to(item.device),
            torch.tensor(ids, dtype=torch.int64, device=item.device),
            spec=item.spec,
            info=dataset.info,
            registry=bench.registry,
            threat=Threat.parse(item.spec["threat"]) if item.spec["threat"] else None,
            craft=craft,
        )

    # What was declared.

    @property
    def threat(self) -> Threat:
        """The threat model. Raises NotApplicable where none was named."""
        if self._threat is None:
            raise NotApplicable("no threat model was named")
        return self._threat

    @property
    def classes(self) -> int:
        """How many classes the defense tells apart."""
        return self.deployed.num_classes

    @property
    def stochastic(self) -> bool:
        """Whether it is declared stochastic."""
        return self.deployed.stochastic

    @property
    def differentiable(self) -> bool:
        """Whether it is declared differentiable."""
        return bool(self.spec["defense"]["differentiable"])

    @property
    def draws(self) -> int:
        """Draws of a stochastic defense that gradients and scores are averaged over."""
        return int(self.spec["protocol"]["eot"]) if self.stochastic else 1

    # What is seen.

    @cached_property
    def correct(self) -> Tensor:
        """(m,) the rows that the defense classifies correctly. Raises NotApplicable where there is none."""
        found = (self.scores(self.x).argmax(1) == self.y).nonzero()[:, 0]
        if not len(found):
            raise NotApplicable(f"none of {len(self.x)} examples is classified correctly")
        return found

    def scores(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Averaged scores (m, C) of points x, which belong to these rows (all, in order, where None)."""
        return self.deployed.scores(x, passes=self.draws, key=self._key, **self._numbers(x, rows))

    def gradient(self, x: Tensor, loss: Callable[..., Tensor], rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, loss (m,) and gradient of ``loss(scores, y)`` at points x of these rows, averaged over draws.

        Of a defense that may refuse, the loss sees the classes alone.
        """

        def of_classes(logits: Tensor, y: Tensor) -> Tensor:
            return loss(logits[:, : self.classes], y)

        given = (self.y[rows],)
        return self.deployed.loss_and_grad(x, of_classes, given, passes=self.draws, key=self._key, **self._numbers(x, rows))

    def _numbers(self, x: Tensor, rows: Tensor | None) -> dict[str, Tensor]:
        ids = self.ids if rows is None else self.ids[rows]
        return {"ids": ids, "draw": torch.zeros_like(ids)}

    def seeded(self, what: str) -> AbstractContextManager[None]:
        """While this lasts, a module that draws without saying so draws what belongs to ``what``, such as a check."""
        return seeded_globally(True, Randomness(self._key, self.ids).seed_for(what), self.x.device)

    @contextmanager
    def same_draws(self, ids: Tensor, seed: int = 0) -> Iterator[None]:
        """While this lasts, random numbers of the module are those of examples ``ids`` (m,), the same each time."""
        devices = [ids.device] if ids.is_cuda else []
        with keyed_draws(Randomness(self._key, ids), torch.full_like(ids, seed)), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield

    @cached_property
    def plain(self) -> tuple[Tensor, ...]:
        """What the module itself returns in a few passes, (n, ...) each: nothing averaged, a seed for each."""
        size = self.deployed.micro_batch or len(self.x)
        found = []
        with torch.no_grad(), torch.random.fork_rng(devices=[self.x.device] if self.x.is_cuda else []):
            for number in range(PASSES):
                torch.manual_seed(number)
                parts = torch.split(self.x, size)
                found.append(torch.cat([self.deployed.module(part) for part in parts]).float())
        return tuple(found)

    @cached_property
    def spread(self) -> tuple[int, float]:
        """How much plain passes differ: by how many right answers, and by how much in logits scaled to length 1."""
        right = [int((logits[:, : self.classes].argmax(1) == self.y).sum()) for logits in self.plain]
        scaled = [logits / (logits.norm(dim=1, keepdim=True) + 1e-10) for logits in self.plain]
        apart = max(float((a - b).norm(dim=1).nan_to_num().max()) for a in scaled for b in scaled)
        return max(right) - min(right), apart

    @property
    def random(self) -> bool:
        """Whether plain passes differ."""
        return self.spread[0] > 0 or self.spread[1] > SAME_LOGITS

    @cached_property
    def coupling(self) -> tuple[str, float] | None:
        """How much an image's logits depend on the batch, relative to the largest of them, and where that shows most.

        None for a stochastic defense whose random numbers belong to the batch, not to the image.
        """
        x, ids = self.x[:FEW], self.ids[:FEW]
        drawn = False

        def logits(rows: Tensor) -> Tensor:
            nonlocal drawn
            with torch.no_grad(), self.same_draws(ids[rows]):
                before = _generators(x)
                found: Tensor = self.deployed.module(x[rows])
                drawn |= any(not torch.equal(a, b) for a, b in zip(before, _generators(x), strict=True))
            return found

        everyone = torch.arange(len(x), device=x.device)
        together = logits(everyone)
        if drawn and self.stochastic:
            return None
        scale = together.abs().amax(1, keepdim=True).clamp_min(1.0)
        others = {
            "alone": torch.cat([logits(everyone[i : i + 1]) for i in range(len(x))]),
            "in another order": logits(everyone.flip(0)).flip(0),
        }
        apart = {where: float(((together - other).abs() / scale).nan_to_num().max()) for where, other in others.items()}
        return max(apart.items(), key=lambda item: item[1])

    @property
    def coupled(self) -> bool:
        """Whether an image's logits depend on the other images of the batch."""
        return self.coupling is not None and self.coupling[1] > ROUNDING

    @cached_property
    def interruption(self) -> str:
        """Why autograd finds no way from the logits to the image; empty where it does. A surrogate is looked at instead of the
        module. Raises NotApplicable where neither is declared to have a gradient.
        """
        if not self.differentiable and self.deployed.surrogate is None:
            raise NotApplicable("declared non-differentiable, without a surrogate")
        rows = self.ids[:2]
        leaf = self.x[:2].clone().requires_grad_()
        through = self.deployed.surrogate or self.deployed.module
        try:
            with torch.enable_grad(), self.same_draws(rows):
                logits = through(leaf)
                if not logits.requires_grad:
                    return "the logits do not require a gradient"
                (found,) = torch.autograd.grad(losses.margin(logits, self.y[:2]).sum(), leaf, allow_unused=True)
        except RuntimeError as error:
            return f"autograd raises: {(str(error).splitlines() or [''])[0]}"
        return "the logits do not depend on the image" if found is None else ""

    def require_gradients(self) -> None:
        """Raise NotApplicable where following gradients means nothing: there are none, or passes differ without notice."""
        if self.interruption:
            raise NotApplicable("there is no gradient: see interrupted-graph")
        self.require_declared()

    def require_attackable(self) -> None:
        """As ``require_gradients``, and where an example may be attacked without the others."""
        self.require_gradients()
        if self.coupled:
            raise NotApplicable("predictions depend on the batch: see batch-coupling")

    def require_declared(self) -> None:
        """Raise NotApplicable where passes differ without notice: what follows from one pass need not hold of the next."""
        if not self.stochastic and self.random:
            raise NotApplicable("passes differ: see randomness-undeclared")

    # What attacks do to it.

    def case(self, *attacks: str, threat: Threat | None = None, after: Case | None = None) -> Case:
        """The runs of attacks, by selector, as checks of results take them. after: runs that come first, and whose examples are
        left alone; they are part of the case.
        """
        limits = threat or self.threat
        before = () if after is None else after.runs
        left = None if after is None else np.logical_and.reduce([after.robust(run) for run in before])
        return Case(limits, (*before, *(self.attack(selector, limits, left)[0] for selector in attacks)))

    def attack(self, selector: str, threat: Threat | None = None, among: Mask | None = None) -> tuple[Run, Tensor]:
        """Run an attack, and judge it: its run, and the accepted points (n, ...), clean where there is none.

        among: (n,) the examples to attack; all where None. What was run before is not run again. Raises NotApplicable where it
        cannot be run here, and says why.
        """
        limits = threat or self.threat
        name = (selector, str(limits), b"" if among is None else among.tobytes())
        if name not in self._runs:
            self._runs[name] = self._attack(self.resolve(selector, limits), limits, among)
        return self._runs[name]

    def resolve(self, selector: str, threat: Threat) -> ResolvedAttack:
        """An attack that can be run here. Raises NotApplicable otherwise."""
        try:
            found = resolve_attack(self.registry, selector)
        except UnknownName as error:
            raise NotApplicable(f"{error.message}: {error.hint or 'pip install rbl-attacks'}") from error
        if reason := unsupported(found, threat, self.classes):
            raise NotApplicable(reason)
        try:
            found = compose(self.registry, found, threat, self.info)
        except RblError as error:
            raise NotApplicable(error.message) from error
        if reason := inapplicable(self.spec["defense"], found.spec()):
            raise NotApplicable(reason)
        return found

    def _attack(self, attack: ResolvedAttack, threat: Threat, among: Mask | None) -> tuple[Run, Tensor]:
        spec = {**self.spec, "attack": attack.spec(), "threat": sized(attack, threat)}
        rows = np.arange(len(self.x)) if among is None else among.nonzero()[0]
        if not len(rows):
            nobody = np.zeros(len(self.x), dtype=bool)
            arrays = {
                "index": self.ids.cpu().numpy(),
                "clean_correct": nobody,
                "success": nobody,
                "size": np.full(len(self.x), np.inf),
            }
            return Run.of(CellResult(key="", spec=spec, arrays=arrays)), self.x
        x, y, ids = (values[torch.from_numpy(rows).to(values.device)] for values in (self.x, self.y, self.ids))
        result = run_shard(spec, self.deployed, attack, x, y, tuple(ids.tolist()), 0, self.craft(attack))
        if result.failure is not None:
            raise NotApplicable(f"{attack.label} raised {type(result.failure).__name__}: {result.failure}") from result.failure
        arrays = {name: np.zeros((len(self.x), *v.shape[1:]), dtype=v.dtype) for name, v in result.arrays.items()}
        for name, values in result.arrays.items():
            arrays[name][rows] = values
        arrays["index"], points = self.ids.cpu().numpy(), self.x.clone()
        points[torch.from_numpy(rows).to(points.device)] = result.x_adv
        return Run.of(CellResult(key="", spec=spec, arrays=arrays)), points


def _generators(x: Tensor) -> list[Tensor]:
    """The states of torch's generators that a module fed with ``x`` may draw from."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(x.device)] if x.is_cuda else [])
