"""A defense under test: built as the core builds it, and images to look at."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustbench_lite.data import DatasetInfo, fetch
from robustbench_lite.deployed import Deployed
from robustbench_lite.errors import MissingData, MissingWeights, RblError
from robustbench_lite.registry import Registry
from robustbench_lite.request import default_data
from robustbench_lite.resolve import (
    ResolvedDefense,
    inner_method,
    resolve,
    resolve_dataset,
    resolve_defense,
)
from robustbench_lite.selectors import parse_selector
from robustbench_lite.specs import WRAPPING, DefenseSpec, base_selectors
from robustbench_lite.testing.checks import Skipped, Subject

N = 16
ENOUGH = 128  # images on which a guess can be told from an answer
SAME = 1e-4  # largest difference of an image's logits between batches
DRAWS = 3


@dataclass(frozen=True)
class Images:
    """What a defense is checked on. real: of a data set; otherwise made up, and only their shape means something."""

    info: DatasetInfo
    x: Tensor
    y: Tensor
    real: bool


def toy_images() -> Images:
    """Ten classes of 1x8x8 noise: for a defense that is checked where no data set is installed."""
    x = torch.rand((ENOUGH, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    info = DatasetInfo(name="toy", classes=tuple("0123456789"), shape=(1, 8, 8), mean=(0.5,), std=(0.3,))
    return Images(info, x, torch.arange(ENOUGH) % 10, real=False)


class DefenseSubject(Subject):
    """A defense under test. dataset: a selector; by default the first that it declares, else ``digits`` where installed.

    device: where the module and the images are when it is asked.
    """

    kind: ClassVar[str] = "defense"

    def __init__(
        self, registry: Registry, selector: str, dataset: str = "", data: Path | None = None, device: str = "cpu"
    ) -> None:
        super().__init__(registry, selector)
        if dataset:
            registry.get("dataset", parse_selector(dataset).name)
        self.dataset = dataset
        self.data = data or default_data()
        self.device = torch.device(device)

    @property
    def declared(self) -> DefenseSpec:
        """The spec of the defense."""
        spec = self.entry.spec
        if not isinstance(spec, DefenseSpec):
            raise TypeError(f"{self.entry.id} is not a defense")
        return spec

    @cached_property
    def images(self) -> Images:
        """Images of the data set; raises Skipped where they are not on this machine."""
        name = self.dataset or next(iter(self.declared.datasets), "")
        if not name:
            installed = any(entry.spec.name == "digits" for entry in self.registry.entries("dataset"))
            if not installed:
                return toy_images()
            name = "digits"
        try:
            found = resolve_dataset(self.registry, name, self.data)
        except MissingData as error:
            raise Skipped(f"the data set {name} is not here", fix=error.hint) from None
        x, y = fetch(found.bundle.test, found.subset(ENOUGH))
        return Images(found.info, x, y, real=True)

    @cached_property
    def resolved(self) -> ResolvedDefense:
        """The defense with its weights; without them where there are none (see ``untrained``). Raises as resolving does."""
        info = self.images.info
        try:
            return resolve_defense(self.registry, self.selector, info)
        except MissingWeights:
            return _without_weights(self.registry, self.selector, info)

    @cached_property
    def untrained(self) -> str:
        """What makes the weights that are missing; empty where none are."""
        try:
            resolve_defense(self.registry, self.selector, self.images.info)
        except MissingWeights as error:
            return error.hint
        except RblError:
            pass
        return ""

    @cached_property
    def original(self) -> nn.Module:
        """The module, built once. Raises Skipped where that fails: the check ``builds`` says why."""
        try:
            return self.build()
        except (Skipped, KeyboardInterrupt):
            raise
        except BaseException:
            raise Skipped("it cannot be built: see the check `builds`") from None

    def build(self) -> nn.Module:
        """Build it as the core does. A module without weights is initialised with a fixed seed."""
        if not self.untrained:
            return self.resolved.build()
        with self.seeded(0):
            return self.resolved.build()

    @contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """Fix the numbers of torch's generators, and put them back."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    @property
    def built(self) -> ResolvedDefense:
        """The defense, of which it is known that it can be built; Skipped otherwise."""
        _ = self.original
        return self.resolved

    @property
    def module(self) -> nn.Module:
        """A copy of the module of its own for each check."""
        return copy.deepcopy(self.original).requires_grad_(False).to(self.device)

    @property
    def x(self) -> Tensor:
        """(16, C, H, W) images."""
        return self.images.x[:N].to(self.device, copy=True)

    @property
    def columns(self) -> int:
        """Logits per image."""
        return self.images.info.num_classes + self.resolved.rejects

    def logits(self, module: nn.Module, x: Tensor, draw: int = 0) -> Tensor:
        """One plain pass without a graph; random numbers of torch's generator are fixed by ``draw``."""
        with torch.no_grad(), self.seeded(draw):
            logits = module(x)
        if not isinstance(logits, Tensor) or logits.shape != (len(x), self.columns):
            raise Skipped("it does not return logits: see the check `logits-shape`")
        return logits.detach()

    def keyed(self) -> Callable[..., Tensor]:
        """A function of images, the ids (n,) of their examples and a draw number (0): (n, C) logits as the core computes them,
        with the random numbers of these examples, in passes of one copy of the module. All on the CPU but for the passes.
        """
        self.logits(self.module, self.x[:1])
        deployed = Deployed(
            self.module,
            num_classes=self.images.info.num_classes,
            stochastic=self.resolved.stochastic,
            rejects=self.resolved.rejects,
        )

        def logits(x: Tensor, ids: Tensor, draw: int = 0) -> Tensor:
            there = ids.to(self.device)
            draws = torch.full_like(there, draw)
            return deployed.stack(x.to(self.device), passes=1, key="check", ids=there, draw=draws)[:, 0].cpu()

        return logits


def _without_weights(registry: Registry, selector: str, info: DatasetInfo) -> ResolvedDefense:
    found = resolve(registry, "defense", selector)
    spec = found.entry.spec
    wrapped = base_selectors(found.instance) if isinstance(spec, DefenseSpec) and spec.kind in WRAPPING else ()
    bases = tuple(_without_weights(registry, text, info) for text in wrapped)
    inner = inner_method(registry, found)
    return ResolvedDefense(found.entry, found.instance, found.label, info, bases=bases, method=inner)
