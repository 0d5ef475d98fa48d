"""What a table says, in plain sentences: for readers who meet it without having read anything else."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from robustbench_lite.leaderboard.model import Leaderboard, Row
from robustbench_lite.leaderboard.text import count
from robustbench_lite.results import MetricValue
from robustbench_lite.specs import UNRESTRICTED
from robustbench_lite.threat import Threat

NAMED = 4  # names in a sentence, before it says "and 7 others"


def allowed(threat: Threat) -> str:
    """What an attacker may do, after "An attacker may"; the spelling of the radius is kept."""
    size = threat.spelling
    if threat.norm == "union":
        return "; or may ".join(allowed(part) for part in threat.parts)
    if threat.norm == UNRESTRICTED:
        return "do whatever the parameters of each attack allow"
    return {
        "linf": f"change every value of an image, which lies between 0 and 1, by at most {size}",
        "l2": f"change an image by at most {size} in Euclidean distance, its values lying between 0 and 1",
        "l1": f"change an image by at most {size} in sum over all values, which lie between 0 and 1",
        "l0": f"change at most {size} pixels of an image, and these as much as it likes",
    }[threat.norm]


def summary(table: Leaderboard) -> list[tuple[str, str]]:
    """Question and answer: which is best, how sure that is, what was attacked, at what cost, what not to believe."""
    said = [("Which is best?", _best(table))]
    if table.ranked:
        said.append(("How sure is that?", _sure(table)))
    said.append(("What was attacked?", _attacked(table)))
    said.append(("At what cost?", _cost(table)))
    said.append(("What not to believe?", _doubtful(table)))
    return said


def share(value: MetricValue | None) -> str:
    """``70.4 %``."""
    return "an unknown share" if value is None else f"{100 * value.value:.1f} %"


def interval(value: MetricValue | None) -> str:
    """``66.3 to 74.2``, in %; empty where there is none."""
    if value is None or value.low is None or value.high is None:
        return ""
    return f"{100 * value.low:.1f} to {100 * value.high:.1f}"


def listed(names: Sequence[str]) -> str:
    """``a, b and c``; after four, ``and 7 others``."""
    if len(names) > NAMED + 1:
        return f"{', '.join(names[:NAMED])} and {len(names) - NAMED} others"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1] if names else ""]))


def _tied(table: Leaderboard) -> list[Row]:
    return [row for row in table.ranked if row.rank == 1]


def _best(table: Leaderboard) -> str:
    if not table.ranked:
        return "That cannot be said: no defense here has a whole and trustworthy set of results."
    first, *others = _tied(table)
    said = (
        f"{first.defense}: on {share(first.worst)} of the images it answers correctly, whatever "
        f"{'the attack does' if len(table.attacks) == 1 else f'the {len(table.attacks)} attacks do'}. "
        f"Without an attack it is right on {share(first.clean)}."
    )
    if others:
        said += f" {listed([row.defense for row in others])} cannot be told apart from it."
    return said


def _sure(table: Leaderboard) -> str:
    ranked = table.ranked
    first, tied = ranked[0], _tied(table)
    between = interval(first.worst).replace(" to ", " and ")
    said = f"With 95 % confidence the {share(first.worst)} lie between {between} %." if between else ""
    if len(ranked) == 1:
        return f"{said} No other defense is ranked beside it.".strip()
    if len(tied) == 1:
        return f"{said} A paired test on the same images separates it from every other ranked defense.".strip()
    rest = len(ranked) - len(tied)
    said += f" The same images do not show which of the {len(tied)} defenses of rank 1 is better, so they share it"
    return (f"{said}; they do separate them from the other {rest}." if rest else f"{said}.").strip()


def _attacked(table: Leaderboard) -> str:
    images = "Images" if table.n is None else f"{table.n:,} images"
    kinds = sorted({attack.access for attack in table.attacks})
    return (
        f"{images} of {table.dataset}, by {_attacks(table)} (access: {', '.join(kinds)}). "
        f"An attacker may {allowed(table.threat)}. An image counts only if the defense withstands every attack on it."
    )


def _attacks(table: Leaderboard) -> str:
    return f"{len(table.attacks)} attack{'s' * (len(table.attacks) != 1)}"


def _cost(table: Leaderboard) -> str:
    rows = table.ranked or table.rows
    passes = [row.cost.passes for row in rows if row.cost.passes is not None]
    seconds = [row.cost.seconds for row in rows if row.cost.seconds is not None]
    if not passes:
        return "Not known."
    said = f"All attacks together spend {count(median(passes))} passes through the network on each image of a typical defense"
    return said + (f", {count(median(seconds))} seconds for all images on the machine that was used." if seconds else ".")


def _doubtful(table: Leaderboard) -> str:
    apart = table.unranked
    warned = [row.defense for row in table.ranked if any(verdict.outcome == "warn" for verdict in row.verdicts)]
    if apart:
        said = (
            f"{len(apart)} of {len(table.rows)} defenses {'stands' if len(apart) == 1 else 'stand'} apart, without a rank: "
            f"{listed([row.defense for row in apart])}. The reasons are given there; do not compare their numbers."
        )
    else:
        said = "Every defense has a whole set of results, and none is flagged."
    if warned:
        said += f" Read the warnings on {listed(warned)}."
    return said
