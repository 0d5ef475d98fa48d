"""Which attacks can be run on which defenses, data sets and threat models, and why the others cannot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from robustbench_lite.composition import white_box
from robustbench_lite.resolve import ResolvedAttack
from robustbench_lite.threat import Threat


def inapplicable(defense: Mapping[str, Any], attack: Mapping[str, Any]) -> str:
    """Why an attack cannot be run on a defense whatever the data set; both as in a cell's spec. Empty where it can."""
    if attack["access"] == "gradient" and not defense["differentiable"] and not defense["surrogate"]:
        return "gradient attack on a non-differentiable defense without surrogate"
    if white_box(defense, attack):
        return f"{defense['label']} is itself what {attack['label']} is crafted on: that is no transfer, but a white-box attack"
    return ""


def unsupported(attack: ResolvedAttack, threat: Threat, classes: int) -> str:
    """Why an attack cannot be run on a data set under a threat model; empty where it can."""
    norms = attack.declared.norms
    if threat.norm not in norms:
        return f"norm {threat.norm} not supported by {attack.label} (it has {', '.join(norms)})"
    minimal = attack.declared.goal == "minimal-norm"
    if minimal and threat.norm == "union":
        return f"{attack.label} minimises one norm and a union has several: run it under {threat.parts[0].norm}"
    if not minimal and math.isinf(threat.eps):
        return f"{attack.label} needs a radius: write {threat.norm}:EPS"
    if classes < attack.declared.min_classes:
        return f"{attack.label} needs at least {attack.declared.min_classes} classes, the data set has {classes}"
    for member in attack.members:
        if reason := unsupported(member, Threat.parse(sized(attack, threat)), classes):
            return f"member {member.label}: {reason}"
    return ""


def sized(attack: ResolvedAttack, threat: Threat) -> str:
    """The threat model as the attack is given it: of a minimal-norm attack one cell serves every size."""
    return threat.norm if attack.declared.goal == "minimal-norm" else str(threat)
