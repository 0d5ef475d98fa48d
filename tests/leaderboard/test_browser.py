"""The HTML report in headless Chromium. RBL_CHROMIUM names the browser where playwright has installed none."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from robustbench_lite.leaderboard.html import render
from robustbench_lite.leaderboard.lookup import About
from robustbench_lite.leaderboard.text import plain

from .pages import with_verdicts
from .test_html import illustrated
from .test_renderers import HOSTILE

playwright = pytest.importorskip("playwright.sync_api", reason="needs a browser: pip install 'robustbench-lite[browser]'")

HOSTILE_NAMES = [*HOSTILE, "<script>window.evil = 1</script>", '"><svg onload="window.evil = 1">']


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        try:
            found = started.chromium.launch(executable_path=os.environ.get("RBL_CHROMIUM") or None)
        except playwright.Error as error:
            reason = str(error).splitlines()[0]
            pytest.skip(f"no Chromium: run `playwright install chromium`, or set RBL_CHROMIUM ({reason})")
        yield found
        found.close()


@pytest.fixture(scope="module")
def table(varied, one):
    return with_verdicts(one(varied, about=lambda _: About(reference="arXiv:1706.06083")), "broken")


@pytest.fixture
def open_page(browser, tmp_path):
    """Opens tables in a browser; fails on a script's error, and on any request but that for the file."""
    contexts = []

    def go(tables, examples=None, **settings):
        path = tmp_path / "report.html"
        path.write_text(render(tables, examples=examples), encoding="utf-8")
        context = browser.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.troubles = []
        page.on("pageerror", lambda error: page.troubles.append(str(error)))
        page.on("console", lambda message: page.troubles.append(message.text))
        page.on("request", lambda request: page.troubles.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        return page

    yield go
    for context in contexts:
        for page in context.pages:
            assert [trouble for trouble in page.troubles if not trouble.startswith("data:image/png")] == []
        context.close()


def names(page, table="ranking"):
    return page.locator(f"table.{table} tbody th").all_inner_texts()


def shown(page, selector):
    return [e.inner_text() for e in page.locator(selector).all() if e.is_visible()]


def test_sorting_by_click_and_by_keyboard(open_page, one, make_cell):
    cells = [make_cell(d, "a", range(k), wrong=range(w), seconds=s) for d, k, w, s in
             (("d2", 4, 0, 3.0), ("d10", 12, 2, 20.0), ("d1", 30, 1, 100.0))]  # fmt: skip
    page = open_page([one(cells)])
    assert names(page) == ["d2", "d10", "d1"]
    headers = {h.inner_text().strip(): h for h in page.locator("table.ranking thead th").all()}
    assert headers["Rank"].get_attribute("aria-sort") == "ascending"
    seconds = headers["Seconds"].get_by_role("button")
    seconds.click()
    assert names(page) == ["d2", "d10", "d1"]
    assert headers["Seconds"].get_attribute("aria-sort") == "ascending"
    assert headers["Rank"].get_attribute("aria-sort") is None
    seconds.click()
    assert names(page) == ["d1", "d10", "d2"]
    assert headers["Seconds"].get_attribute("aria-sort") == "descending"
    name = headers["Defense"].get_by_role("button")
    name.focus()
    page.keyboard.press("Enter")
    assert names(page) == ["d1", "d2", "d10"]  # as people count
    page.keyboard.press("Space")
    assert names(page) == ["d10", "d2", "d1"]
    assert page.evaluate("document.activeElement.innerText.trim()") == "Defense"
    headers["Right without an attack"].get_by_role("button").click()
    assert names(page) == ["d2", "d1", "d10"]  # the best first
    headers["Rank"].get_by_role("button").click()
    assert names(page) == ["d2", "d10", "d1"]


def test_what_is_missing_goes_last_whichever_way(open_page, table):
    page = open_page([table])
    column = page.locator("table.matrix").first.locator("thead button", has_text="square")
    for _ in range(2):
        column.click()
        assert names(page, "matrix")[-2:] == ["broken", "noisy"]
    first = names(page, "matrix")[0]
    column.click()
    assert names(page, "matrix")[0] != first


def test_numbers_are_sorted_as_they_are_written(open_page, one, make_cell):
    sizes = {"far": 0.3, "near": 0.04, "never": 0.2}
    cells = [make_cell(d, "fmn", range(3 if d == "never" else 40), sizes=s, threat="linf") for d, s in sizes.items()]
    page = open_page([one([*cells, make_cell("far", "pgd")])])
    page.get_by_text("How far an image must be changed").click()
    medians = page.locator("table", has=page.locator("caption", has_text="Median smallest change"))
    medians.get_by_role("button", name="fmn").click()
    assert medians.locator("tbody th").all_inner_texts() == ["near", "far", "never"]
    assert medians.locator("tbody td").last.inner_text().startswith("∞")


def test_rows_of_equal_value_keep_their_order(open_page, one, make_cell):
    page = open_page([one([make_cell(f"d{i}", "a", range(3), seconds=i % 2) for i in range(6)])])
    page.locator("table.ranking thead button", has_text="Seconds").click()
    assert names(page) == ["d0", "d2", "d4", "d1", "d3", "d5"]


def test_filtering_rows_lines_and_images(open_page, table, one, varied):
    from robustbench_lite.leaderboard.gallery import pick

    held = {cell.key: illustrated(cell) for cell in varied if cell.status == "done"}
    page = open_page([table], {0: pick(table, held)})
    assert shown(page, ".ranking tbody th") == ["strong", "close", "weak"]
    box = page.get_by_role("searchbox")
    box.fill("EA")
    assert shown(page, ".ranking tbody th") == ["weak"]
    assert shown(page, ".apart tbody th") == []
    assert shown(page, "table.matrix tbody th") == ["weak"]
    assert {e.get_attribute("data-name") for e in page.locator("svg g[data-name]").all() if e.is_visible()} == {"weak"}
    assert {e.get_attribute("data-name") for e in page.locator(".gallery li").all() if e.is_visible()} == {"weak"}
    assert page.get_by_role("status").inner_text() == "1 of 5 defenses shown"
    box.fill("o s")
    assert shown(page, ".ranking tbody th") == ["strong", "close"]
    assert shown(page, ".apart tbody th") == ["noisy"]
    box.fill("")
    assert len(shown(page, ".ranking tbody th")) == 3
    assert page.get_by_role("status").inner_text() == ""


def test_each_table_is_filtered_alone(open_page, one, make_cell):
    tables = [one([make_cell("x"), make_cell("y")]), one([make_cell("x", dataset="b"), make_cell("y", dataset="b")])]
    page = open_page(tables)
    page.locator("#t2 input").fill("x")
    assert shown(page, "#t1 .ranking tbody th") == ["x", "y"]
    assert shown(page, "#t2 .ranking tbody th") == ["x"]
    page.get_by_role("link", name="b, linf:0.15").click()
    assert page.evaluate("location.hash") == "#t2"


def test_hostile_names_stay_text(open_page, make_cell, one):
    cells = [make_cell("x", "a")]
    for i, hostile in enumerate(HOSTILE_NAMES):
        cells += [make_cell(hostile, "a", range(i)), make_cell("x", hostile, status="error", reason=hostile, threat="linf")]
        cells += [make_cell(hostile, each, threat="linf") for each in HOSTILE_NAMES]
    said = HOSTILE_NAMES[0]
    table = one(cells, about=lambda _: About(reference=said), flags={"x": HOSTILE_NAMES})
    table = replace(table, dataset=plain(said), dataset_spec=table.dataset_spec | {"id": said})
    page = open_page([table])
    assert page.evaluate("window.evil") is None
    assert page.locator("script").count() == 1
    assert page.locator("main img, main script, main a, main iframe").count() == 0
    assert set(names(page)) == set(map(plain, HOSTILE_NAMES))
    page.locator(".ranking thead button", has_text="Defense").click()
    box = page.get_by_role("searchbox")
    for hostile in (said, "a|b|c", "<script>"):
        box.fill(plain(hostile))
        found = shown(page, ".ranking tbody th")
        assert found == [plain(name) for name in HOSTILE_NAMES if plain(hostile) in plain(name)]
        assert page.locator(".apart tbody th").is_hidden()


def test_flags_show_their_evidence_on_click_and_on_enter(open_page, table):
    page = open_page([table])
    evidence = page.get_by_text("the gradient is zero on 212 of 500 examples")
    assert evidence.is_hidden()
    page.get_by_text("Flag: zero-gradients").click()
    assert evidence.is_visible()
    assert page.get_by_text("attack it through a surrogate").is_visible()
    page.get_by_text("Warning: more-steps-help").focus()
    page.keyboard.press("Enter")
    assert page.get_by_text("400 steps beat 9 examples more").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_and_the_reader(open_page, table, scheme):
    page = open_page([table], color_scheme=scheme)
    button = page.get_by_role("button", name="Dark colours")

    def brightness():
        return page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")[0]

    assert (brightness() < 64) is (scheme == "dark")
    assert button.get_attribute("aria-pressed") == str(scheme == "dark").lower()
    button.click()
    assert (brightness() < 64) is (scheme != "dark")
    assert button.get_attribute("aria-pressed") == str(scheme != "dark").lower()
    button.click()
    assert (brightness() < 64) is (scheme == "dark")


@pytest.mark.parametrize("width", [320, 1200])
def test_nothing_but_tables_scrolls_sideways(open_page, make_cell, one, width):
    cells = [make_cell(f"a-defense-with-a-long-name[base=pgd-at,quality={i}]", f"attack-{j}[steps=100,targets={j}]", range(i))
             for i in range(3) for j in range(12)]  # fmt: skip
    page = open_page(
        [one([*cells, make_cell("x" * 200, "attack-0[steps=100,targets=0]")])], viewport={"width": width, "height": 700}
    )
    for details in page.locator("details").all():
        details.evaluate("e => e.open = true")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    scrolled = page.locator("div.scroll").first
    scrolled.evaluate("e => e.scrollLeft = 200")
    box = page.locator(".ranking tbody th").first.bounding_box()
    assert box["x"] >= 0  # the name stays in view
    assert box["width"] < width * 0.7


def test_without_scripts_all_is_there_but_what_needs_them(open_page, table):
    page = open_page([table], java_script_enabled=False)
    assert page.locator(".filter").is_hidden()
    assert page.get_by_role("button").count() == 0
    assert shown(page, ".ranking tbody th") == ["strong", "close", "weak"]
    page.get_by_text("Flag: zero-gradients").click()
    assert page.get_by_text("212 of 500").is_visible()


def test_the_keyboard_reaches_everything_in_order(open_page, table):
    page = open_page([table])
    reached = []
    for _ in range(200):
        page.keyboard.press("Tab")
        what = page.evaluate(
            "[document.activeElement.tagName, document.activeElement.ariaLabel || document.activeElement.innerText]"
        )
        if what[0] == "BODY":
            break
        reached.append(" ".join(" ".join(what).split()))
    assert reached[0] == "A Skip to the tables"
    assert reached[1] == "BUTTON Dark colours"
    assert reached[2].startswith("INPUT")
    assert "DIV Ranking of digits, linf:0.15" in reached
    assert "BUTTON Rank" in reached
    assert "SUMMARY Flag: zero-gradients" in reached
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#main"


@pytest.mark.parametrize(("scheme", "width"), [("light", 375), ("dark", 1200)])
def test_axe_finds_no_barrier(open_page, table, varied, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install 'robustbench-lite[browser]'")
    from robustbench_lite.leaderboard.gallery import pick

    held = {cell.key: illustrated(cell) for cell in varied if cell.status == "done"}
    warned = with_verdicts(table, "weak", tuple(replace(v, outcome="warn") for v in table.rows[-2].verdicts))
    page = open_page([warned, table], {0: pick(table, held)}, color_scheme=scheme, viewport={"width": width, "height": 900})
    for details in page.locator("details").all():
        details.evaluate("e => e.open = true")
    found = axe.Axe().run(page).response["violations"]
    assert [(v["id"], [n["html"][:150] for n in v["nodes"][:3]]) for v in found] == []
