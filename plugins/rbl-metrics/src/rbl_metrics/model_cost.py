"""How large a model is and what one answer costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from robustbench_lite import MeasuredModel, MetricValue, Threat


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Number of parameters of the module, trained or not; what a wrapper wraps counts, too. Buffers do not."""

    def measure(self, model: MeasuredModel, threat: Threat | None) -> dict[str, np.ndarray]:
        """One row per tensor: its number of values."""
        return {"count": np.array([p.numel() for p in model.module.parameters()] or [0])}

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> MetricValue:
        return MetricValue(value=float(arrays["count"].sum()))


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Floating-point operations of one pass over one image, two per multiplication and addition.

    Those of matrix products, convolutions and attention, as ``torch.utils.flop_counter`` counts them; what a defense does
    outside torch is not seen. A stochastic defense may average several passes.
    """

    examples: int = 1

    def measure(self, model: MeasuredModel, threat: Threat | None) -> dict[str, np.ndarray]:
        """One row."""
        from torch.utils.flop_counter import FlopCounterMode

        rows = torch.zeros(1, dtype=torch.int64, device=model.device)
        with torch.no_grad(), model.keyed(rows), FlopCounterMode(display=False) as counter:
            model.module(model.x[:1])
        return {"flops": np.array([counter.get_total_flops()], dtype=np.int64)}

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> MetricValue:
        return MetricValue(value=float(arrays["flops"][0]))
