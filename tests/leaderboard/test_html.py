from __future__ import annotations

import base64
import hashlib
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from robustbench_lite import Threat
from robustbench_lite.leaderboard.gallery import PER_DEFENSE, PER_TABLE, pick
from robustbench_lite.leaderboard.html import charts, findings, render, words
from robustbench_lite.leaderboard.html.words import summary
from robustbench_lite.leaderboard.lookup import About
from robustbench_lite.leaderboard.measures import Measure, MeasureTable
from robustbench_lite.leaderboard.text import plain
from robustbench_lite.results import MetricValue
from robustbench_lite.verdict import Verdict

from .pages import Page, with_verdicts
from .test_renderers import HOSTILE


@pytest.fixture(scope="module")
def table(varied, one):
    return with_verdicts(one(varied, about=lambda _: About(reference="arXiv:1706.06083")), "broken")


def test_a_page_is_well_formed_and_asks_nothing_of_a_server(table):
    page = Page(render([table, table]))
    assert page.tags[1][0] == "head"
    assert len(set(page.values("id"))) == len(page.values("id"))
    for attribute in ("aria-labelledby", "aria-describedby"):
        assert set(" ".join(page.values(attribute)).split()) <= set(page.values("id"))
    for attrs in page.all("a"):
        assert attrs["href"].startswith("#") or attrs["rel"] == "noopener noreferrer"
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    assert page.values("src") == page.values("srcset") == page.values("style") == []
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert not re.search(r"url\(|@import|https?:", "".join(page.texts["style"] + page.texts["script"]))
    anchors = [attrs["href"][1:] for attrs in page.all("a") if attrs["href"].startswith("#")]
    assert set(anchors) == {"main", "t1", "t2"}


def test_only_the_pages_own_script_and_style_may_run(table):
    page = Page(render([table]))
    (policy,) = [attrs["content"] for attrs in page.all("meta") if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    for kind in ("script", "style"):
        (content,) = page.texts[kind]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_rendering_is_deterministic_whatever_the_order(one, varied):
    expected = render([one(varied)])
    for seed in range(3):
        assert render([one(varied, shuffle=seed)]) == expected


def test_ranked_and_other_rows_are_apart_with_their_reasons(table):
    ranking, apart = (text for text in Page(render([table])).texts["table"][:2])
    assert [name for name in ("strong", "close", "weak", "noisy", "broken") if name in ranking] == ["strong", "close", "weak"]
    assert "shared by 2" in ranking
    for said in ("broken", "fmn: crashed: worker died with signal 11", "noisy", "square: missing: not run"):
        assert said in apart
    for said in ("Flag: zero-gradients", "212 of 500", "attack it through a surrogate", "0.424", "Warning: more-steps-help"):
        assert apart.count(said) == 1
    assert "one-step" in apart  # passed


def test_flags_that_no_check_raised_are_shown_too(one, make_cell):
    (row,) = one([make_cell()], flags={"d": ["judged on other examples than x"]}).rows
    assert [(v.check, v.outcome) for v in findings(row)] == [("judged on other examples than x", "fail")]


@pytest.fixture(scope="module")
def page_of(make_cell, one):
    """A page on which everything that plugins and users choose is one text."""

    def build(said):
        cells = [
            make_cell(said, "a", dataset=said),
            make_cell(said, said, threat="linf", dataset=said, beaten=[1]),
            make_cell("x", said, threat="linf", status="error", reason=said, dataset=said),
            make_cell("x", "a", dataset=said),
        ]
        verdict = Verdict(check=plain(said), outcome="fail", evidence=plain(said), advice=plain(said))
        table = one(cells, about=lambda _: About(reference=said), flags={"x": [said]})
        return render([with_verdicts(table, "x", (verdict,))], command=said)

    return build


@pytest.mark.parametrize("hostile", [*HOSTILE, "<script>alert(1)</script>", "</style><script>", '" onload="x', "{{ 7 * 7 }}"])
def test_hostile_words_stay_words(page_of, hostile):
    html = page_of(hostile)
    page, harmless = Page(html), Page(page_of("harmless"))
    assert [tag for tag, _ in page.tags if tag != "wbr"] == [tag for tag, _ in harmless.tags if tag != "wbr"]
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert page.values("href") == harmless.values("href")
    assert " ".join(page.text.split()).count(plain(hostile)) >= harmless.text.count("harmless") - 1
    assert plain(hostile) in page.values("data-name")
    assert not any(c in html for c in "\x1b\x07\u202e\u200b\r")


def test_references_become_links_where_they_are_addresses(one, make_cell):
    page = Page(render([one([make_cell()], about=lambda _: About(reference="arXiv:1706.06083"))]))
    assert "https://arxiv.org/abs/1706.06083" in page.values("href")
    page = Page(render([one([make_cell()], about=lambda _: About(reference="javascript:alert(1)"))]))
    assert [href for href in page.values("href") if not href.startswith("#")] == []
    assert "javascript:alert(1)" in page.text


def test_pages_without_results_without_ranks_and_of_every_threat(tables, make_cell):
    assert "no results" in Page(render([])).text
    threats = ["linf:8/255", "l2:0.5", "l1:12", "l0:8", "union:linf:0.03+l2:0.5", "unrestricted"]
    found = tables([make_cell(threat=threat) for threat in threats])
    found += tables([make_cell(status="error", reason="no", dataset="failing"), make_cell(status="missing", dataset="none")])
    page = Page(render(found))
    for said in ("at most 8/255", "0.5 in Euclidean", "12 in sum", "at most 8 pixels", "; or may", "parameters of each attack"):
        assert said in page.text
    assert "That cannot be said" in page.text


def test_a_newcomer_is_told_what_the_table_says(make_cell, one):
    cells = [make_cell("best", "a", range(4)), make_cell("same", "a", range(5)), make_cell("poor", "a", range(30))]
    said = dict(summary(one(cells)))
    assert said["Which is best?"] == (
        "best: on 90.0 % of the images it answers correctly, whatever the attack does. Without an attack it is right on "
        "100.0 %. same cannot be told apart from it."
    )
    assert "between 76.9 and 96.0 %" in said["How sure is that?"]
    assert "separate them from the other 1" in said["How sure is that?"]
    assert "40 images of digits, by 1 attack" in said["What was attacked?"]
    assert "by at most 0.15" in said["What was attacked?"]
    assert said["At what cost?"].startswith("All attacks together spend 30 passes")
    assert "none is flagged" in said["What not to believe?"]
    flagged = dict(summary(one(cells, flags={"best": ["zero gradients"]})))
    assert flagged["Which is best?"].startswith("same:")
    assert flagged["What not to believe?"].startswith("1 of 3 defenses stands apart, without a rank: best.")


def test_warnings_are_pointed_out(one, varied):
    table = with_verdicts(one(varied), "strong")
    rows = tuple(replace(row, verdicts=row.verdicts[1:]) for row in table.rows)
    assert "Read the warnings on strong." in dict(summary(replace(table, rows=rows)))["What not to believe?"]


def test_names_in_a_sentence():
    assert words.listed(["a"]) == "a"
    assert words.listed(["a", "b", "c"]) == "a, b and c"
    assert words.listed(list("abcdefgh")) == "a, b, c, d and 4 others"
    assert words.listed(list("abcde")) == "a, b, c, d and e"
    assert words.allowed(Threat.parse("linf:8/255")).endswith("by at most 8/255")
    assert words.interval(MetricValue(value=0.5)) == ""


def test_curves_fall_from_the_clean_accuracy_and_step_where_examples_are_beaten(make_cell, one):
    table = one(
        [make_cell("x", "fmn", range(20), sizes=0.1, threat="linf", wrong=range(4)), make_cell("x", "pgd", wrong=range(4))]
    )
    (row,) = table.rows
    assert row.curve.step
    assert row.curve.points[0][:2] == (0.0, 0.9)
    at = {round(point[0], 6): point[1] for point in row.curve.points}
    assert max(at) == 0.3
    assert all(accuracy == (0.9 if radius < 0.1 else 0.5) for radius, accuracy in at.items())
    chart = charts.curves(table)
    (line,) = chart.lines
    assert line.values[0].startswith("90.0 [")
    assert line.values[-1].startswith("50.0 [")
    ys = [float(y) for y in re.findall(r" (-?[\d.]+)(?=L|$)", line.path)]
    assert ys == sorted(ys)
    assert len(set(ys)) == 2
    assert chart.x.place(0.15) == chart.mark


def test_curves_of_budgets_are_known_where_they_were_run(make_cell, tables):
    cells = [make_cell("x", "pgd", range(k), sizes=eps, threat=f"linf:{eps}") for eps, k in ((0.1, 8), (0.2, 20))]
    for table in tables(cells):
        assert table.rows[0].curve.points[1][:2] == (0.1, 0.8)
        assert not table.rows[0].curve.step
        values = charts.curves(table).lines[0].values
        assert [value for value in values if value != "–"] == [values[0], values[4], values[8]]
    assert charts.curves(tables(cells[:1])[0]) is None


def test_more_curves_than_colours_are_grey(make_cell, one):
    cells = [make_cell(f"d{i}", "fmn", range(i), threat="linf") for i in range(12)]
    chart = charts.curves(one([*cells, *(make_cell(f"d{i}", "pgd") for i in range(12))]))
    assert [line.style for line in chart.lines] == [*range(8), None, None, None, None]
    assert [bool(line.band) for line in chart.lines] == [True] * 8 + [False] * 4


def test_scatter_averages_over_ranked_defenses_and_labels_do_not_overlap(make_cell, one):
    cells = [make_cell(d, f"attack-{i}", range(i)) for i in range(12) for d in "xy"] + [make_cell("z", "attack-3", range(40))]
    chart = charts.scatter(one(cells))
    assert chart.defenses == 2
    left = {point.label: point.left for point in chart.points}
    assert left["attack-3"] == 92.5
    assert {point.passes for point in chart.points} == {30.0}
    boxes = [
        (p.place.x - {"start": 0, "middle": 0.5, "end": 1}[p.place.anchor] * len(p.label) * 6.3, p.place.y, len(p.label) * 6.3)
        for p in chart.points
        if p.place
    ]
    assert len(boxes) > 3
    for i, (x, y, width) in enumerate(boxes):
        assert all(x + width <= a or a + w <= x or abs(y - b) >= 13 for a, b, w in boxes[i + 1 :])
    assert charts.scatter(one(cells[-1:] + [make_cell("z", "b", status="error")])) is None


@pytest.mark.parametrize("high", [0.003, 0.3, 1, 7, 24, 4000])
def test_ticks_are_round_and_inside(high):
    found = charts.ticks(high)
    assert found[0] == 0
    assert 4 <= len(found) <= 8
    assert found[-1] <= high * (1 + 1e-9)
    assert len(f"{found[1]:g}") <= 6


def test_transfer_stands_beside_the_same_attack_on_the_defense_itself(make_cell, one):
    def transferred(defense, beaten, source):
        cell = make_cell(defense, f"transfer-{source}", beaten)
        attack = cell.spec["attack"] | {
            "access": "transfer",
            "members": [make_cell(attack="mifgsm").spec["attack"]],
            "surrogates": [make_cell(source).spec["defense"]],
        }
        return replace(cell, spec=cell.spec | {"attack": attack})

    cells = [make_cell(d, "mifgsm", range(30)) for d in "xyz"]
    cells += [transferred(d, range(10), s) for d in "xyz" for s in "xy" if d != s]
    table = one(cells, not_applicable={(d, f"transfer-{d}"): "itself" for d in "xy"})
    (found,) = charts.transfers(table)
    assert (found.craft, found.header) == ("mifgsm", ("the defense itself", "x", "y"))
    shown = [[row.entries[i].value and row.entries[i].value.value for i in found.columns] for row in table.rows]
    assert shown == [[0.25, None, 0.75], [0.25, 0.75, None], [0.25, 0.75, 0.75]]
    assert "made on x" in Page(render([table])).text


def measure(defense, metric, value, attack="", **facts):
    facts = {"scope": "cell" if attack else "model", "direction": "lower", "unit": "", **facts}
    return Measure(defense=defense, attack=attack, metric=metric, id=f"rbl/{metric}", version=1, value=value, **facts)


def test_further_metrics_are_shown_beside_a_table_or_alone(one, make_cell):
    found = (
        measure("d", "ece", MetricValue(value=0.25), unit="%"),
        measure("d", "nll", MetricValue(value=3.75), attack="a"),
        measure("d", "lipschitz", None, note="error: <b>no</b> gradient"),
    )
    other = MeasureTable(dataset="mnist", dataset_spec={}, protocol={"name": "quick", "version": 1}, seed=0, measures=found)
    page = Page(render([replace(one([make_cell()]), measures=found)], others=[other]))
    for said in ("ece (%)", "25.0", "3.75", "error: <b>no</b> gradient"):
        assert page.text.count(said) == 2
    assert "mnist, quick@1, metrics of models" in page.text
    assert "holds no results" not in Page(render([], others=[other])).text


class Illustrated:
    """A cell with images kept."""

    def __init__(self, result, images):
        self.key, self.spec, self.result, self.images = result.key, result.spec, result, images

    def load_for_tables(self):
        return self.result

    def examples(self):
        yield from self.images


def illustrated(result, channels=3):
    n = result.n
    x = np.full((n, channels, 5, 4), 0.5, np.float32)
    adv = x.copy()
    adv[:, 0, 0, 0] = 0.6
    arrays = {**result.arrays, "adv_pred": np.full(n, 7)}
    return Illustrated(replace(result, arrays=arrays), [{"index": np.arange(n), "x": x, "x_adv": adv}])


def pixels(uri):
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_show_what_was_beaten_and_the_change_magnified(make_cell, one, channels):
    cells = [make_cell("x", "weak", [5]), make_cell("x", "strong", [4, 9]), make_cell("y", "strong", [])]
    held = {cell.key: illustrated(cell, channels) for cell in cells}
    found = pick(one(cells), held)
    assert [(e.defense, e.attack, e.index, e.answer) for e in found] == [("x", "strong", 4, 7), ("x", "weak", 5, 7)]
    example = found[0]
    assert example.magnified == pytest.approx(5, rel=1e-5)
    clean, adversarial, difference = map(pixels, (example.clean, example.adversarial, example.difference))
    assert clean.shape == ((5, 4) if channels == 1 else (5, 4, 3))
    assert (clean == 128).all()
    assert adversarial.flat[0] == 153
    assert difference.flat[0] == 255
    assert (difference.flat[channels:] == 128).all()
    page = Page(render([one(cells)], examples={0: found}))
    assert len(page.all("img")) == 6
    assert all(attrs["alt"] for attrs in page.all("img"))
    assert all(attrs["src"].startswith("data:image/png;base64,") for attrs in page.all("img"))


def test_the_gallery_is_bounded_and_passes_over_what_is_no_image(make_cell, one):
    cells = [make_cell(f"d{i}", a, range(20)) for i in range(9) for a in "abc"]
    held = {cell.key: illustrated(cell) for cell in cells}
    found = pick(one(cells), held)
    assert len(found) == PER_TABLE
    assert len({example.defense for example in found}) == PER_TABLE // PER_DEFENSE
    assert len({(example.defense, example.index) for example in found}) == PER_TABLE
    assert pick(one(cells[:3]), {cell.key: illustrated(cell, channels=2) for cell in cells}) == []
    assert pick(one(cells[:3]), {}) == []


def test_images_beaten_only_outside_the_radius_are_not_shown(make_cell, tables):
    cell = make_cell("x", "fmn", [3, 4], sizes=[0.2, 0.1], threat="linf")
    (table,) = tables([cell], threats=[Threat.parse("linf:0.15")])
    assert [example.index for example in pick(table, {cell.key: illustrated(cell)})] == [4]
