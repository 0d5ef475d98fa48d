"""Checks of stored results, on cells whose answer is known by construction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_lite.diagnostics.catalogue import CHECKS, combine, find_checks
from robustbench_lite.diagnostics.compare import climb, loss_gap, separated, surely
from robustbench_lite.diagnostics.runs import Case, Run, check_results
from robustbench_lite.errors import UnknownName
from robustbench_lite.results import REJECTED, CellResult
from robustbench_lite.threat import Threat
from robustbench_lite.verdict import Verdict

N = 100
JUDGED = {check.name for check in find_checks(["judge"])}
THREAT = "linf:0.1"


def run(
    name: str = "pgd",
    beaten: Iterable[int] = (),
    *,
    access: str = "gradient",
    steps: int = 0,
    threat: str = THREAT,
    sizes: float = 0.05,
    stochastic: bool = False,
    unstable: int = 0,
    lost: int = 0,
    rejected: dict[str, Iterable[int]] | None = None,
    members: Sequence[str] = (),
    member: Sequence[int] = (),
    surrogates: bool = False,
    parameters: dict[str, Any] | None = None,
) -> Run:
    """A run on N examples, all right; steps: gradients followed on each; rejected: examples by why a proposal was refused."""
    hit = np.zeros(N, dtype=bool)
    hit[list(beaten)] = True
    arrays = {
        "index": np.arange(N),
        "clean_correct": np.ones(N, dtype=bool),
        "success": hit,
        "size": np.where(hit, sizes, np.inf),
        "backwards": np.full(N, steps * (8 if stochastic else 1)),
        "unstable": np.arange(N) < unstable,
        "source": np.where(np.arange(N) < lost, 2, 0),
        "rejected": np.where(np.arange(N) < lost, 1, 0),
    }
    for why, examples in (rejected or {}).items():
        arrays["rejected"][list(examples)] = REJECTED.index(why)
    attack: dict[str, Any] = {"id": f"rbl/{name}", "label": name, "access": access, "parameters": parameters or {}}
    if members:
        attack["members"] = [{"label": f"m{i}", "access": of} for i, of in enumerate(members, 1)]
        arrays["member"] = np.zeros(N, dtype=np.int16)
        arrays["member"][: len(member)] = member
    if surrogates:
        attack["surrogates"] = [{"label": "other"}]
    spec = {"attack": attack, "defense": {"stochastic": stochastic}, "protocol": {"eot": 8}, "threat": threat}
    return Run.of(CellResult(key="", spec=spec, arrays=arrays))


def outcome(check: str, *runs: Run, threat: str = THREAT) -> tuple[str, str]:
    (found,) = [v for v in check_results(Case(Threat.parse(threat), runs)) if v.check == check]
    return found.outcome, found.evidence


def test_every_check_says_something_of_one_run() -> None:
    verdicts = check_results(Case(Threat.parse(THREAT), (run(steps=40),)))
    assert {v.check for v in verdicts} == {check.name for check in CHECKS if check.results}
    assert all(v.evidence for v in verdicts)
    assert {v.outcome for v in verdicts} == {"pass", "not-applicable"}


# -------------------------------------------------------------------------------------------------------- one against


def test_one_step_that_beats_more_than_many_fails() -> None:
    fgsm, pgd = run("fgsm", range(20), steps=1), run("pgd", range(5), steps=40)
    assert outcome("one-step-stronger", fgsm, pgd)[0] == "fail"
    assert outcome("one-step-stronger", run("fgsm", range(5), steps=1), run("pgd", range(20), steps=40))[0] == "pass"
    # Another iterative attack does better: then it is the first that is weak, not the defense that is masked.
    assert outcome("one-step-stronger", fgsm, pgd, run("apgd-ce", range(30), steps=100))[0] == "pass"


def test_a_gap_that_chance_explains_is_no_flag() -> None:
    """4 against 0 discordant examples: p = 0.125. 6 against 0: p = 0.03."""
    for beaten, expected in ((4, "pass"), (6, "fail")):
        assert outcome("one-step-stronger", run("fgsm", range(beaten), steps=1), run("pgd", steps=40))[0] == expected


def test_black_box_counts_what_no_gradient_found() -> None:
    pgd = run("pgd", range(50), steps=40)
    inside, outside = run("square", range(40), access="scores"), run("square", range(40, 60), access="scores")
    assert outcome("black-box-stronger", pgd, inside) == (
        "pass",
        "only attacks by scores or decisions beat 0 of 100 examples (0.0 %)",
    )
    assert outcome("black-box-stronger", pgd, outside)[0] == "fail"
    assert outcome("black-box-stronger", pgd, run("hop-skip-jump", range(50, 53), access="decision"))[0] == "warn"


def test_a_verdict_names_the_limit_that_it_is_above() -> None:
    def found(check: str, *runs: Run) -> tuple[str, float | None]:
        (verdict,) = [v for v in check_results(Case(Threat.parse(THREAT), runs)) if v.check == check]
        return verdict.outcome, verdict.threshold

    pgd = run("pgd", range(10), steps=40)
    assert found("black-box-stronger", pgd, run("square", range(13), access="scores")) == ("warn", 0.002)
    assert found("black-box-stronger", pgd, run("square", range(30), access="scores")) == ("fail", 0.02)
    assert found("loss-dependence", run("apgd-ce"), run("apgd-dlr", range(12))) == ("warn", 0.03)
    assert found("loss-dependence", run("apgd-ce"), run("apgd-dlr", range(40))) == ("fail", 0.1)


def test_without_an_iterative_white_box_nothing_follows() -> None:
    """FGSM alone is no white box: that Square does better says nothing of the defense."""
    fgsm, square = run("fgsm", range(10), steps=1), run("square", range(90), access="scores")
    for check in ("black-box-stronger", "random-search", "transfer-stronger"):
        assert outcome(check, fgsm, square) == (
            "not-applicable",
            "no attack followed 10 gradients or more: nothing to compare with",
        )


def test_an_attack_that_is_done_early_counts_with_the_steps_it_was_given() -> None:
    early = run("pgd", range(N), steps=3, parameters={"steps": 40})
    assert early.steps == 40
    assert outcome("black-box-stronger", early, run("square", range(N), access="scores"))[0] == "pass"
    assert run("square", parameters={"steps": 40}).steps == 0


def test_draws_of_a_stochastic_defense_are_no_steps() -> None:
    assert run("fgsm", steps=1, stochastic=True).steps == 1


def test_members_count_by_their_own_access() -> None:
    """AutoAttack: of the examples 0 to 59, APGD beats 40 and Square the rest."""
    found = run("autoattack", range(60), steps=100, members=("gradient", "scores"), member=[1] * 40 + [2] * 20)
    assert outcome("black-box-stronger", found)[0] == "fail"
    alone = run("autoattack", range(60), steps=100, members=("gradient", "scores"), member=[1] * 60)
    assert outcome("black-box-stronger", alone)[0] == "pass"


def test_random_points_and_transfer_are_held_against_gradients() -> None:
    pgd = run("pgd", range(10), steps=40)
    assert outcome("random-search", pgd, run("uniform-noise", range(10, 20), access="none"))[0] == "fail"
    assert outcome("random-search", pgd, run("uniform-noise", [10], access="none"))[0] == "warn"
    assert outcome("random-search", pgd, run("repeated-noise", range(5), access="decision"))[0] == "pass"
    crafted = run("transfer", range(30), access="transfer", members=("gradient",), surrogates=True)
    assert outcome("transfer-stronger", pgd, crafted)[0] == "fail"
    assert outcome("transfer-stronger", run("pgd", range(40), steps=40), crafted)[0] == "pass"


def test_a_minimal_norm_attack_counts_at_the_radius() -> None:
    fmn = run("fmn", range(50), steps=40, threat="linf", sizes=0.08)
    square = run("square", range(50), access="scores")
    assert outcome("black-box-stronger", fmn, square)[0] == "pass"
    closer = run("square", range(50), access="scores", threat="linf:0.05", sizes=0.04)
    assert outcome("black-box-stronger", fmn, closer, threat="linf:0.05")[0] == "fail"


# -------------------------------------------------------------------------------------------------------- one and more


def test_more_steps_and_restarts_of_one_attack() -> None:
    short = run("pgd", range(10), parameters={"steps": 40, "restarts": 1})

    def against(name: str, **parameters: Any) -> str:
        return outcome("more-steps-help", short, run(name, range(30), parameters=parameters))[0]

    assert against("pgd", steps=400, restarts=1) == "warn"
    assert against("pgd", steps=40, restarts=10) == "warn"
    assert against("bim", steps=400, restarts=1) == "not-applicable"
    assert against("pgd", steps=400, restarts=1, loss="dlr") == "not-applicable"
    weaker = run("pgd", range(10), parameters={"steps": 400, "restarts": 1})
    assert outcome("more-steps-help", short, weaker)[0] == "pass"


@pytest.mark.parametrize(("more", "expected"), [(2, "pass"), (5, "pass"), (8, "warn"), (14, "warn"), (30, "fail")])
def test_a_gap_between_losses(more: int, expected: str) -> None:
    ce, dlr = run("apgd-ce", range(10)), run("apgd-dlr", range(10 + more))
    assert outcome("loss-dependence", ce, dlr)[0] == expected
    assert outcome("loss-dependence", dlr, ce)[0] == expected


def test_five_radii_are_a_ladder() -> None:
    falling = [run("pgd", range(10 * k), threat=f"linf:0.{k}") for k in range(1, 6)]
    assert outcome("radius-monotonicity", *falling)[0] == "pass"
    assert outcome("radius-monotonicity", *falling[:4]) == ("not-applicable", "no attack was run at 5 radii")
    dented = [*falling[:2], run("pgd", range(2), threat="linf:0.3"), *falling[3:]]
    assert outcome("radius-monotonicity", *dented)[0] == "warn"


def test_what_the_judge_does_not_see_again() -> None:
    assert outcome("unstable-evaluation", run(unstable=1))[0] == "pass"
    assert outcome("unstable-evaluation", run(unstable=9), run("other")) == (
        "fail",
        "9 of 100 examples seen beaten but not by the judge, under pgd",
    )
    assert outcome("unstable-evaluation", run(unstable=60, stochastic=True))[0] == "pass"
    assert outcome("silent-success", run(lost=30))[0] == "warn"
    assert outcome("silent-success", run(lost=30, stochastic=True))[0] == "pass"


@pytest.mark.parametrize("why", ["not finite", "outside the box", "outside the threat model", "nothing proposed"])
def test_no_rank_for_examples_for_which_every_proposal_broke_a_rule(why: str) -> None:
    bad = run("bad", range(10), rejected={why: range(100)})
    assert outcome("untried-examples", bad) == (
        "fail",
        "90 of 100 examples count as robust because every point that bad proposed for them broke a rule",
    )
    worse = run("worse", range(20), rejected={why: range(20, 100)})
    assert outcome("untried-examples", bad, worse) == (
        "fail",
        "80 of 100 examples count as robust because every point that all 2 attacks proposed for them broke a rule",
    )
    assert outcome("untried-examples", bad, run("fair"))[0] == "pass"  # the cell of the first has a footnote
    assert outcome("untried-examples", run("bad", rejected={why: [3]}))[0] == "warn"  # one of 100: nothing is sure
    assert outcome("untried-examples", run("bad", rejected={why: [3]}), run("fair"))[0] == "pass"


def test_proposals_that_keep_the_rules_are_no_flag() -> None:
    fair = run("fair", range(10), rejected={"not misclassified": range(10, 90), "not attacked: clean error": range(90, 100)})
    assert outcome("untried-examples", fair) == (
        "pass",
        "0 of 100 examples count as robust because every point that fair proposed for them broke a rule",
    )
    # What the target had seen counts, whatever the attack returned afterwards.
    assert outcome("untried-examples", run("late", range(100), rejected={"not finite": range(100)}))[0] == "pass"


def test_no_rank_for_a_defense_that_gives_no_answer() -> None:
    why = "the defense's logits are not finite"
    silent = run("pgd", range(50), rejected={why: range(40, 100)})
    assert outcome("undefined-answers", silent, run("fgsm")) == (
        "fail",
        "the defense's logits are not finite at points proposed for 50 of 100 examples that count as robust",
    )
    assert outcome("undefined-answers", silent, run("square", range(50, 99)))[0] == "warn"
    assert outcome("undefined-answers", silent, run("square", range(50, 100)))[0] == "pass"
    assert outcome("untried-examples", silent)[0] == "pass"


def test_unrestricted_attacks_are_not_compared() -> None:
    runs = run("fog", range(50), access="none", threat="unrestricted"), run("pgd", steps=40, threat="unrestricted")
    verdicts = check_results(Case(Threat.parse("unrestricted"), runs))
    assert {v.outcome for v in verdicts if v.check not in JUDGED} == {"not-applicable"}


# ------------------------------------------------------------------------------------------------------------- by chance


@pytest.mark.parametrize(
    ("count", "n", "limit", "expected"), [(0, 64, 0.0, False), (1, 64, 0.0, True), (2, 64, 0.01, False), (3, 64, 0.01, True)]
)
def test_shares_count_where_their_interval_does(count: int, n: int, limit: float, expected: bool) -> None:
    assert surely(count, n, limit) is expected


def test_a_share_at_its_limit_is_rarely_flagged() -> None:
    """Of defenses with just the share that is allowed, no more than one in twenty is flagged."""
    draws = np.random.default_rng(0).binomial(500, 0.02, 2000)
    flagged = {k: surely(k, 500, 0.02) for k in set(draws.tolist())}
    assert np.mean([flagged[k] for k in draws.tolist()]) <= 0.05


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_an_attack_is_never_separated_from_itself_or_from_a_weaker_one(robust: list[bool], random: Any) -> None:
    mask = np.array(robust)
    weaker = mask | np.array([random.random() < 0.5 for _ in robust])
    assert not separated(mask, mask, 0.0)
    assert not separated(mask, weaker, 0.0)
    assert climb("a", {0.1: weaker, 0.2: mask}).outcome == "pass"
    assert loss_gap({"a": mask, "b": mask}).value == 0


# ------------------------------------------------------------------------------------------------------------- catalogue


def test_the_catalogue_has_all_seventeen_and_their_functions_exist() -> None:
    from robustbench_lite.diagnostics.catalogue import _load

    assert {check.code for check in CHECKS} >= {f"D{i}" for i in range(1, 18)}
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        assert check.results or check.probe
        assert all(callable(_load(place)) for place in (check.results, check.probe) if place)
        assert (check.cost == "results") == (not check.probe)


def test_checks_are_found_by_name_and_code() -> None:
    assert [check.name for check in find_checks(["D6", "few-classes"])] == ["zero-gradients", "few-classes"]
    assert len(find_checks(["D17"])) == 3
    with pytest.raises(UnknownName, match="no check 'zero-gradient'") as refused:
        find_checks(["zero-gradient"])
    assert "did you mean 'zero-gradients'" in refused.value.hint


def test_of_several_verdicts_the_worst_counts() -> None:
    def verdict(outcome: Any, check: str = "zero-gradients") -> Verdict:
        return Verdict(check=check, outcome=outcome, evidence=outcome)

    mixed = combine([verdict("not-applicable"), verdict("pass", "random-search")], [verdict("fail")], [verdict("warn")])
    assert [(v.check, v.outcome) for v in mixed] == [("zero-gradients", "fail"), ("random-search", "pass")]
    reasons = [[Verdict(check="transfer-stronger", outcome="not-applicable", evidence=said)] for said in ("none", "no weights")]
    assert [v.evidence for v in combine(*reasons)] == ["no weights"]
