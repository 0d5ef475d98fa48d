"""Peak memory of one shard: ImageNet-size images on ResNet-50, in micro-batches, a few steps of an attack.

    python benchmarks/memory.py                                   16, 64 and 256 images under pgd[steps=2]
    python benchmarks/memory.py --n 16 64 --attack 'apgd-ce[steps=3]'
    python benchmarks/memory.py --quick                           a smoke run with ResNet-18 on 2 and 4 images of 64x64

Each number of images is a process of its own, and its peak is what the operating system says that the process took
(getrusage), less what it had taken before the attack. Apart from the network's activations, which the micro-batch bounds, that
should be the state of the attack: so many copies of the images. Random weights; the labels are the network's answers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace

THREAT = "linf:0.00001"  # so small that no example is beaten and leaves


def main(arguments: list[str] | None = None) -> int:
    """Measure in a child process per number of images; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.quick:
        options.n, options.network, options.side, options.threads = options.n or [2, 4], "resnet18", 64, 1
    if options.child:
        print(json.dumps(_child(options.n[0], options)))
        return 0
    print(f"`{options.attack}` on {options.network}, images 3x{options.side}x{options.side}\n")
    print("| images | micro-batch | of one copy MiB | before MiB | peak MiB | above MiB | copies | never beaten | seconds |")
    print("|" + " --- |" * 9)
    first: tuple[float, float] | None = None
    for n in options.n or [16, 64, 256]:
        words = [sys.executable, __file__, "--child", "--n", str(n), "--attack", options.attack, "--network", options.network]
        words += ["--side", str(options.side), "--threads", str(options.threads)]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        copy, above = found["copy"], found["peak"] - found["before"]
        first = first or (copy, above)
        copies = f"{(above - first[1]) / (copy - first[0]):.1f} each" if copy > first[0] + 4 else ""
        print(
            f"| {n} | {found['micro_batch']} | {copy:.1f} | {found['before']:.0f} | {found['peak']:.0f} | {above:.0f} "
            f"| {copies} | {found['robust']} | {found['seconds']:.0f} |",
            flush=True,
        )
    print("\nCopies: what each further image takes, in units of its own size: growth over the first row.")
    return 0


def _child(n: int, options: argparse.Namespace) -> dict[str, float]:
    """One shard of n images; memory in MiB."""
    import torch

    from robustbench_lite import import_torchvision
    from robustbench_lite.composition import resolve_members
    from robustbench_lite.deployed import Deployed
    from robustbench_lite.registry import load
    from robustbench_lite.resolve import resolve_attack
    from robustbench_lite.runner import peak_memory, prepare_torch, run_shard
    from robustbench_lite.threat import Threat

    prepare_torch("cpu", options.threads)
    import_torchvision()
    from torchvision import models

    torch.manual_seed(0)
    model = getattr(models, options.network)(weights=None).eval().requires_grad_(False)
    x = torch.rand(n, 3, options.side, options.side)
    with torch.no_grad():
        y = torch.cat([model(x[i : i + 1]).argmax(1) for i in range(n)])
        classes = model(x[:1]).shape[1]
    registry = load()
    attack = resolve_attack(registry, options.attack)
    attack = replace(attack, members=resolve_members(registry, attack, Threat.parse(THREAT)))
    deployed = Deployed(model, num_classes=classes, name=options.network)
    spec = {
        "protocol": {"eval_draws": 1, "eot": 1, "budget": None},
        "threat": THREAT,
        "seed": 0,
        "attack": {"id": attack.entry.id},
        "dataset": {"label": "random images"},
    }
    before = peak_memory("cpu")
    began = time.perf_counter()
    result = run_shard(spec, deployed, attack, x, y, tuple(range(n)), 0)
    if result.failure is not None:
        raise result.failure
    mebibyte = 2**20
    return {
        "micro_batch": deployed.micro_batch or n,
        "copy": x.numel() * x.element_size() / mebibyte,
        "before": before / mebibyte,
        "peak": peak_memory("cpu") / mebibyte,
        "robust": int((result.arrays["clean_correct"] & ~result.arrays["success"]).sum()),
        "seconds": time.perf_counter() - began,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", nargs="+", type=int, help="numbers of images [16 64 256]")
    parser.add_argument("--attack", default="pgd[steps=2]")
    parser.add_argument("--network", default="resnet50", help="of torchvision.models")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
