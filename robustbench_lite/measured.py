"""A defense as a metric of scope ``model`` is given it: the module itself, examples, and keyed random numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from robustbench_lite.data import DatasetBundle, DatasetInfo, fetch
from robustbench_lite.errors import MissingData
from robustbench_lite.randomness import Randomness, keyed_draws

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robustbench_lite.deployed import Deployed
    from robustbench_lite.losses import Loss


class MeasuredModel:
    """What ``measure`` of a metric is called with.

    module: [0, 1] NCHW in, logits out, in evaluation mode, its parameters without gradient: copy it (``copy.deepcopy``)
    before changing anything. x (n, C, H, W), y (n,): the examples, on ``device``; ids (n,): their numbers in the test split.
    info: what is known of the data set. rng: random numbers by example. card: the model card of the weights, empty where
    they have none.
    """

    def __init__(
        self,
        deployed: Deployed,
        bundle: DatasetBundle,
        x: Tensor,
        y: Tensor,
        ids: Tensor,
        *,
        draws: int,
        key: str,
        card: Mapping[str, Any] | None = None,
        others: Mapping[str, DatasetBundle] | None = None,
    ) -> None:
        """draws: passes of a stochastic defense that ``logits`` averages over. key: of all random numbers."""
        self.module: nn.Module = deployed.module
        self.info: DatasetInfo = bundle.info
        self.x, self.y, self.ids = x, y, ids
        self.stochastic = deployed.stochastic
        self.rejects = deployed.rejects
        self.name = deployed.name
        self.card = dict(card or {})
        self._others = dict(others or {})
        self.rng = Randomness(f"{key}|metric", ids)
        self._deployed, self._bundle = deployed, bundle
        self._draws = draws if deployed.stochastic else 1
        self._key = f"{key}|defense"

    @property
    def device(self) -> torch.device:
        """Where the module and the examples are."""
        return self.x.device

    def logits(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """(n, C) scores without a graph, averaged over the draws of a stochastic defense; in micro-batches that fit.

        index (n,): the row of ``self.x`` that each row of ``x`` belongs to; 0 to n - 1 where None.
        """
        rows = self._rows(x, index)
        return self._deployed.scores(x, passes=self._draws, key=self._key, ids=self.ids[rows], draw=torch.zeros_like(rows))

    def passes(self, x: Tensor, count: int, index: Tensor | None = None) -> Tensor:
        """(n, count, C) scores of each of ``count`` passes, as ``logits``: all the same for a deterministic defense."""
        rows = self._rows(x, index)
        return self._deployed.stack(x, passes=count, key=self._key, ids=self.ids[rows], draw=torch.zeros_like(rows))

    def loss_and_grad(self, x: Tensor, loss: Loss, *aux: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (n, C), loss (n,) and its gradient with respect to ``x``: ``loss(logits, *aux) -> (n,)``, aux (n, ...)."""
        rows = self._rows(x, index)
        return self._deployed.loss_and_grad(
            x, loss, aux, passes=self._draws, key=self._key, ids=self.ids[rows], draw=torch.zeros_like(rows)
        )

    @contextmanager
    def keyed(self, rows: Tensor, draw: int = 0) -> Iterator[None]:
        """While this lasts, ``randn_like`` and ``rand_like`` in the module give each example its own numbers.

        rows (n,): those of ``self.x`` that are in the batch. draw: numbers the call.
        """
        noise = Randomness(self._key, self.ids[rows])
        with keyed_draws(noise, torch.full_like(rows, draw)):
            yield

    def training_examples(self, n: int) -> tuple[Tensor, Tensor]:
        """Images and labels of n examples of the training split, always the same ones, on ``device``.

        Raises MissingData where the data set has none; fewer where it has fewer.
        """
        split = self._bundle.train
        if split is None:
            raise MissingData(f"data set {self.info.name} has no training split", hint="give it one, or leave the metric out")
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:n]
        x, y = fetch(split, order.tolist())
        return x.to(self.device), y.long().to(self.device)

    def other_examples(self, n: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Images and labels of the first n examples of each data set that the metric's field ``datasets`` names, by label."""
        found = {}
        for label, bundle in self._others.items():
            x, y = fetch(bundle.test, [int(i) for i in bundle.evaluation[:n]])
            found[label] = (x.to(self.device), y.long().to(self.device))
        return found

    def _rows(self, x: Tensor, index: Tensor | None) -> Tensor:
        return torch.arange(len(x), device=x.device) if index is None else index
