from __future__ import annotations

import csv
import io
import json
from html.parser import HTMLParser

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from robustbench_lite.leaderboard import csv_table, html, json_table, markdown, terminal
from robustbench_lite.leaderboard.lookup import About
from robustbench_lite.leaderboard.text import count, length, link, percent, plain
from robustbench_lite.results import MetricValue

from .pages import Page

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "a|b|c",
    "a\nb\r\n| x | y |",
    "[x](javascript:alert(1))",
    "![x](http://evil.example/x.png)",
    "`code` ``more``",
    "**bold** _it_ ~~no~~ $x^2$ #1",
    "\\| \\[x](y) \\`",
    "&lt;b&gt; &#60;i&#62;",
    "\x1b[2J\x1b]8;;http://evil.example\x07x\u202e\u200b",
    '=HYPERLINK("http://evil.example")',
    "@SUM(1)",
    "[bold red]rich[/]",
]


class Seen(HTMLParser):
    """The tags, links and texts of rendered Markdown."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.cells: list[list[str]] = []
        self.text = ""
        self.inside = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self.inside:
            self.cells[-1][-1] += data


def read(text: str) -> Seen:
    return Seen(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text))


def on_terminal(table, width=250) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=False).print(terminal.render(table))
    return stream.getvalue()


RENDERERS = [markdown.render, csv_table.render, json_table.render, on_terminal]


@pytest.mark.parametrize("render", RENDERERS)
def test_rendering_is_deterministic_whatever_the_order(one, varied, render):
    expected = render(one(varied))
    for seed in range(4):
        assert render(one(varied, shuffle=seed)) == expected


def test_markdown_says_what_was_computed(one, varied):
    text = markdown.render(one(varied), command="rbl report --out leaderboards")
    seen = read(text)
    for said in (
        "digits, linf:0.15",
        "n = 40",
        "quick@1",
        "seed: 0",
        "attacks: 3",
        "Wilson",
        "McNemar",
        "Holm",
        "not transitive",
    ):
        assert said in seen.text
    assert "made by: `rbl report --out leaderboards`" in text
    rows = {cells[1].partition(" ")[0]: cells for cells in seen.cells if len(cells) == len(seen.cells[0])}
    assert rows["strong"][:5] == ["1", "strong", "100.0 [91.2, 100.0]", "87.5 [73.9, 94.5]", "87.5 [73.9, 94.5] ¹"]
    assert rows["close"][0] == "1"
    assert rows["weak"][0] == "3"
    apart = {cells[0].partition(" ")[0]: cells for cells in seen.cells if ": " in cells[1]}
    assert seen.text.index("Not ranked") > seen.text.index("weak")
    assert apart["broken"][1] == "fmn: crashed: worker died with signal 11; square: partial: not finished"
    assert apart["broken"][5:7] == ["crashed", "partial 16/40"]
    assert (apart["noisy"][1], apart["noisy"][6]) == ("square: missing: not run", "missing")
    assert "3 proposals outside the threat model, judged not adversarial" in seen.text


@pytest.fixture(scope="module")
def marked(make_cell, one):
    """A table with a naive column, extra data and a reconstruction."""
    cells = [
        make_cell("x", "pgd", range(4)),
        make_cell("x", "square", range(20)),
        make_cell("y", "pgd"),
        make_cell("y", "square"),
    ]
    declared = {"rbl/x": About(extra_data="tiny images"), "rbl/y": About(fidelity="reconstruction")}
    return one(cells, naive=lambda *_: ["rbl/pgd"], about=lambda identifier: declared[identifier])


def test_marks_and_naive_numbers_are_shown(marked):
    seen = read(markdown.render(marked))
    header, y, x = seen.cells[:3]
    assert header[2:5] == ["clean", "naive", "worst case"]
    assert (y[3], x[3][:4], x[4][:4]) == ("–", "90.0", "50.0")
    for said in ("a reconstruction", "trained with extra data: tiny images", "Naive: the worst case over"):
        assert said in seen.text
    rows = {row["defense"]: row for row in csv.DictReader(io.StringIO(csv_table.render(marked)))}
    assert (rows["x"]["naive"], rows["y"]["naive"], rows["x"]["extra data"]) == ("0.9", "", "tiny images")
    assert rows["y"]["fidelity"] == "reconstruction"
    found = {row["defense"]["label"]: row for row in validate(marked)["rows"]}
    assert (found["x"]["naive"]["value"], found["y"]["naive"]) == (0.9, None)
    assert (found["x"]["defense"]["extra_data"], found["y"]["defense"]["fidelity"]) == ("tiny images", "reconstruction")
    assert " naive " in on_terminal(marked)
    page = Page(html.render([marked]))
    assert [text.split() for text in page.texts["small"] if "data" in text or "recon" in text] == [
        ["reconstruction"],
        ["extra", "data"],
    ]
    assert "Under naive attacks only" in page.text


def test_there_is_no_naive_column_without_a_naive_number(one, varied):
    assert "naive" not in markdown.render(one(varied)).lower()
    assert "naive" not in Page(html.render([one(varied)])).text.lower()


def test_every_mark_has_its_footnote(one, varied):
    text = markdown.render(one(varied))
    marks = {c for c in text if c in "¹²³⁴⁵⁶⁷⁸⁹"}
    numbered = [line for line in text.splitlines() if line[:1].isdigit()]
    assert len(marks) == len(numbered) > 2
    assert len({line.partition(". ")[2] for line in numbered}) == len(numbered)


def test_equal_reasons_share_a_footnote(make_cell, one):
    cells = [make_cell(d, "a", unstable=3) for d in "xyz"]
    assert markdown.render(one(cells)).count("3 examples beaten in the search") == 1


def test_the_legend_speaks_of_what_is_there(make_cell, one):
    whole = markdown.render(one([make_cell()]))
    assert "without a rank" not in whole
    assert "does not apply" not in whole
    assert "Median smallest" not in whole
    assert "Unrestricted" not in whole
    assert "Unrestricted: every image counts" in markdown.render(one([make_cell(threat="unrestricted")]))
    cells = [make_cell("x", "a"), make_cell("x", "b"), make_cell("y", "a")]
    assert "without a rank" in markdown.render(one(cells))
    assert "does not apply" in markdown.render(one(cells, not_applicable={("y", "b"): "no"}))


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_words_stay_words_in_markdown(make_cell, one, words):
    cells = [make_cell(words, "a"), make_cell("x", words, status="error", reason=words), make_cell("x", "a")]
    text = markdown.render(one(cells, about=lambda _: About(reference=words)), command=words)
    seen = read(text)
    assert seen.tags <= {"h1", "ul", "ol", "li", "p", "table", "thead", "tbody", "tr", "th", "td", "code"}
    assert seen.links == []
    assert {len(cells) for cells in seen.cells} == {10}
    assert any(cells[0].startswith(plain(words)) for cells in seen.cells[1:])
    assert any(plain(words) in cells[1] for cells in seen.cells[1:])
    assert not any(c in text for c in "\x1b\x07\u202e\u200b\r")


@given(st.text(max_size=40))
@settings(deadline=None, max_examples=200)
def test_escaped_text_reads_back(words):
    seen = read(f"|a|\n|-|\n|x {markdown.escape(words)} x|\n")
    assert seen.tags == {"table", "thead", "tbody", "tr", "th", "td"}
    assert " ".join(seen.cells[1][0].split()) == " ".join(f"x {plain(words)} x".split())


@pytest.mark.parametrize("words", ["<script src=//evil.example", "<!-- x", "<?x", "<b"])
def test_no_html_begins_a_list_item(words):
    seen = read(f"1. {markdown.escape(words)}\n2. two\n")
    assert seen.tags == {"ol", "li"}
    assert seen.text.split("\n")[1] == words


@given(st.text(alphabet="`a b", max_size=12))
@settings(deadline=None)
def test_code_spans_hold_any_backticks(words):
    shown = plain(words)
    if shown:
        assert read(f"- {markdown.code(words)}\n").text.strip() == shown
        assert "code" in read(f"- {markdown.code(words)}\n").tags


@pytest.mark.parametrize(
    ("reference", "address"),
    [
        ("arXiv:1706.06083", "https://arxiv.org/abs/1706.06083"),
        ("arXiv:2003.01690v2", "https://arxiv.org/abs/2003.01690v2"),
        ("arXiv:math/0309136", "https://arxiv.org/abs/math/0309136"),
        ("doi:10.1109/SP.2017.49", "https://doi.org/10.1109/SP.2017.49"),
        ("doi:10.1002/(SICI)1097", "https://doi.org/10.1002/%28SICI%291097"),
        ("https://example.org/a_(b)?c=d#e", "https://example.org/a_%28b%29?c=d#e"),
        ("http://example.org/a%20b", "http://example.org/a%20b"),
        ("https://example.org/a|b", "https://example.org/a%7Cb"),
        ("javascript:alert(1)", None),
        ("JaVaScRiPt://x.example/%0aalert(1)", None),
        ("data:text/html,x", None),
        ("file:///etc/passwd", None),
        ("//example.org", None),
        ("https://", None),
        ("https://exa mple.org", None),
        ("http://[", None),
        ("arXiv:../../x", None),
        ("A book, 1999", None),
        ("", None),
    ],
)
def test_links(reference, address):
    assert link(reference) == address


@pytest.mark.parametrize("reference", ["arXiv:1706.06083", "https://example.org/a_(b)|<c>?d=`e`"])
def test_markdown_links_lead_where_the_reference_says(make_cell, one, reference):
    seen = read(markdown.render(one([make_cell()], about=lambda _: About(reference=reference))))
    assert seen.links == [link(reference)]
    assert seen.cells[1][-1] == reference


def test_csv_is_for_machines(one, varied):
    rows = list(csv.DictReader(io.StringIO(csv_table.render(one(varied)))))
    found = {row["defense"]: row for row in rows}
    assert [row["defense"] for row in rows] == ["strong", "close", "weak", "broken", "noisy"]
    strong, broken = found["strong"], found["broken"]
    assert (float(strong["worst case"]), float(strong["apgd-ce"]), strong["rank"], strong["n"]) == (0.875, 0.875, "1", "40")
    assert float(strong["worst case low"]) == pytest.approx(0.738879, abs=1e-6)
    assert (broken["rank"], broken["worst case"], broken["fmn"], broken["fmn status"]) == ("", "", "", "crashed")
    assert broken["square status"] == "partial 16/40"
    assert "fmn: crashed: worker died with signal 11" in broken["notes"]
    assert {row["threat"] for row in rows} == {"linf:0.15"}


@pytest.mark.parametrize("words", [*HOSTILE, "+1", "-1", "＝1", "  =1"])
def test_csv_holds_no_formulas(make_cell, one, words):
    cells = [make_cell(words, words, reason=words), make_cell("x", words, status="error", reason=words)]
    rows = list(
        csv.reader(io.StringIO(csv_table.render(one(cells, about=lambda _: About(reference=words), flags={"x": [words]}))))
    )
    assert {len(row) for row in rows} == {len(rows[0])}
    assert len(rows) == 3
    for cell in (cell for row in rows for cell in row):
        assert not cell.lstrip().startswith(("=", "+", "-", "@", "＝"))
        assert "\n" not in cell


def test_csv_keeps_text_that_is_no_formula():
    assert csv_table.safe("a=b") == "a=b"
    assert csv_table.safe("=b") == "'=b"
    assert csv_table.safe("  =b") == "'  =b"


def validate(table):
    found = json.loads(json_table.render(table), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    jsonschema.Draft202012Validator(json_table.schema()).validate(found)
    return found


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(json_table.schema())


def test_every_render_keeps_the_schema(tables, make_cell, varied):
    cells = [
        *varied,
        make_cell(threat="l2:1"),
        make_cell(threat="union:linf:0.1+l2:1"),
        make_cell(threat="unrestricted"),
        make_cell(status="missing", threat="l1:8"),
    ]
    found = tables(
        [*cells, make_cell("weighted", threat="l0:3", weights="a" * 64)], about=lambda _: About(reference="arXiv:1706.06083")
    )
    assert len(found) == 6
    for table in found:
        validate(table)


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_words_keep_the_schema(make_cell, one, words):
    cells = [make_cell(words, words, dataset=words), make_cell("x", words, status="error", reason=words, dataset=words)]
    found = validate(one(cells, about=lambda _: About(reference=words)))
    assert found["rows"][0]["defense"]["label"] == plain(words)
    assert found["rows"][0]["defense"]["link"] is None


@pytest.mark.parametrize(
    "wrong",
    [
        lambda t: t.pop("protocol"),
        lambda t: t["rows"][0].update(rank=0),
        lambda t: t["rows"][0]["worst_case"].update(value=71.0),
        lambda t: t["rows"][0]["attacks"]["apgd-ce"].update(status="fine"),
        lambda t: t["rows"][0]["defense"].update(link="javascript:x"),
        lambda t: t.update(format=2),
    ],
)
def test_the_schema_refuses(one, varied, wrong):
    found = json_table.to_json(one(varied))
    wrong(found)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(json_table.schema()).validate(found)


def test_json_values(one, varied):
    found = validate(one(varied))
    rows = {row["defense"]["label"]: row for row in found["rows"]}
    assert found["threat"] == {"text": "linf:0.15", "norm": "linf", "eps": 0.15}
    assert rows["strong"]["worst_case"]["value"] == 0.875
    assert rows["strong"]["attacks"]["fmn"]["median_perturbation"]["value"] == "inf"
    assert rows["weak"]["attacks"]["fmn"]["median_perturbation"] == {"value": 0.02, "low": 0.02, "high": 0.02, "n": 36}
    assert rows["broken"]["attacks"]["square"]["progress"] == "16/40"
    assert rows["broken"]["worst_case"] is None
    assert rows["strong"]["cost"] == {"forwards": 60.0, "backwards": 30.0, "seconds": 4.5}


def test_terminal_shows_the_table(one, varied):
    text = on_terminal(one(varied))
    for said in (
        "digits, linf:0.15",
        "quick@1",
        "strong",
        "87.5",
        "[73.9, 94.5]",
        "crashed",
        "1. 3 proposals outside",
        "Wilson",
    ):
        assert said in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_wide_table_goes_on_below(make_cell, one, width):
    cells = [make_cell(f"defense-{i}", f"attack-{j}", range(i)) for i in range(3) for j in range(9)]
    lines = on_terminal(one(cells), width).splitlines()
    assert max(map(len, lines)) <= width
    for name in [*(f"attack-{j}" for j in range(9)), "worst case", "forwards", "seconds"]:
        assert sum(f" {name} " in line for line in lines) == 1
    parts = sum("┃ rank " in line for line in lines)
    assert parts > 1
    assert all(sum(f"defense-{i}" in line for line in lines) == parts for i in range(3))
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_words_stay_words_on_a_terminal(make_cell, one, words):
    text = on_terminal(one([make_cell(words), make_cell("x", status="error", reason=words)]))
    assert plain(words) in text
    assert not any(c in text for c in "\x1b\x07\u202e\u200b\r")


def test_numbers_for_people():
    assert percent(MetricValue(value=0.71, low=0.6689, high=0.7481)) == "71.0 [66.9, 74.8]"
    assert percent(MetricValue(value=0.5)) == "50.0"
    assert percent(None) == count(None) == length(None) == "–"
    assert (count(0.0), count(1.25), count(1204.4), count(12.0)) == ("0", "1.2", "1,204", "12")
    assert length(MetricValue(value=float("inf"), low=0.12345, high=float("inf"))) == "∞ [0.123, ∞]"


@given(st.text(max_size=80))
def test_plain_text_is_one_printable_line(words):
    shown = plain(words)
    assert shown.isprintable()
    shown.encode("utf-8")
    assert len(shown.splitlines()) <= 1
    assert plain(shown) == shown
