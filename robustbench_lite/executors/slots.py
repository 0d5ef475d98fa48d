"""Device slots: where worker processes may run, and how many threads each may use."""

from __future__ import annotations

import os
from dataclasses import dataclass

from robustbench_lite.errors import UsageError
from robustbench_lite.processes import cores
from robustbench_lite.request import parse_devices


@dataclass(frozen=True)
class Slot:
    """One place for one worker. threads: None leaves torch's own choice."""

    device: str
    threads: int | None = None


def find_slots(device: str, workers: int | None, cells: int) -> list[Slot]:
    """The slots of ``--device`` and ``--workers``: one per GPU, or as many as there are cores (and cells) on the CPU.

    The cores are divided among the CPU's workers, so that cells do not fight for them; ``OMP_NUM_THREADS`` sets how many
    threads each gets, as it does for torch.
    Raises UsageError for a device that is not there.
    """
    import torch

    names = parse_devices(device)
    if names == ("auto",):
        names = tuple(f"cuda:{i}" for i in range(torch.cuda.device_count())) or ("cpu",)
    if names == ("cpu",):
        count = workers or max(1, min(cores(), cells))
        asked = os.environ.get("OMP_NUM_THREADS", "")
        return [Slot("cpu", int(asked) if asked.isdigit() and int(asked) else max(1, cores() // count))] * count
    for name in names:
        if int(name.removeprefix("cuda:")) >= torch.cuda.device_count():
            raise UsageError(
                f"device {name} is not there: torch sees {torch.cuda.device_count()} GPUs",
                hint="rbl doctor lists the devices; --device cpu runs without a GPU",
            )
    return [Slot(name) for name in names for _ in range(workers or 1)]
