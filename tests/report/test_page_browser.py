"""The page that shows a report, in Chromium: nothing is fetched, nothing overflows, everything can be read."""

import itertools

import pytest

from amnesia.report.page import report_html
from support.browser import FAINT_TEXTS, Opened, chromium
from support.report_sample import alone, hostile, sample

pytestmark = pytest.mark.browser

DOCUMENTS = {"everything": sample(), "one model": alone(), "long words": hostile("supercalifragilistic" * 12)}


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module", params=DOCUMENTS.values(), ids=DOCUMENTS)
def file(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report_html(request.param), encoding="utf-8")
    assert path.stat().st_size < 1_000_000
    return path


def widths(*sampled, further):
    """Widths at which one page is looked at, in the full tier and in the exhaustive one."""
    return pytest.mark.parametrize("widths", [sampled, pytest.param(further, marks=pytest.mark.exhaustive)], ids=str)


BACKGROUNDS = {"light": "rgb(250, 248, 244)", "dark": "rgb(21, 23, 26)"}


@widths(320, 1280, further=(390, 768))
def test_every_width_in_both_schemes(browser, file, widths):
    with Opened(browser, file, widths[0], "light") as opened:
        for folded in (True, False):
            for width, scheme in itertools.product(widths, BACKGROUNDS):
                opened.look(width, scheme)
                seen = f"folded: {folded}, {width}, {scheme}"
                assert opened.page.evaluate("document.documentElement.scrollWidth") <= width, seen
                assert opened.page.evaluate(FAINT_TEXTS) == [], seen
                background = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
                assert background == BACKGROUNDS[scheme]
            opened.unfold()
        assert opened.requests == [file.as_uri()]
        assert opened.complaints == []


@widths(390, 700, further=(360, 500))
def test_a_phone_shows_all_columns_of_the_first_table_and_all_of_each_caption(browser, file, widths):
    with Opened(browser, file, widths[0], "light") as opened:
        hidden = "all => all.map((one) => one.scrollWidth - one.clientWidth)"
        for width in widths:
            opened.look(width, "light")
            assert opened.page.eval_on_selector_all("header .scroll", hidden) in ([0], [])  # One model has tiles.
        opened.unfold()
        # The end of the text, not of the box, which is as wide as the table.
        ends = """all => all.map((one) => {
          const text = document.createRange();
          text.selectNodeContents(one);
          return text.getBoundingClientRect().right;
        })"""
        for width in widths:
            opened.look(width, "light")
            captions = opened.page.eval_on_selector_all("caption", ends)
            assert captions and max(captions) <= width


def test_what_a_screen_reader_meets(browser, file):
    with Opened(browser, file, 390, "light") as opened:
        opened.unfold()
        page = opened.page
        for width in (390, 1280):
            opened.look(width, "light")
            levels = [
                int(tag[1]) for tag in page.eval_on_selector_all("h1,h2,h3,h4", "all => all.map((one) => one.tagName)")
            ]
            assert levels[0] == 1 and all(after <= before + 1 for before, after in itertools.pairwise(levels))
            # The tree that the browser gives to assistive technology, not the attributes of the page.
            tree = opened.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
            images = [node for node in tree if node.get("role", {}).get("value") == "image"]
            assert len(images) == page.locator("svg").filter(visible=True).count()
            assert all(node["name"]["value"] and node["description"]["value"] for node in images)
            for role in ("banner", "main", "navigation", "contentinfo"):
                assert page.get_by_role(role, exact=True).count() == 1
            # Cells stay cells where the table is laid out as cards.
            assert page.get_by_role("table").count() == page.locator("table").filter(visible=True).count()
            assert page.get_by_role("table").first.get_by_role("cell").count() > 0


def test_the_keyboard_reaches_everything_and_shows_where_it_is(browser, file):
    with Opened(browser, file, 390, "dark") as opened:
        page = opened.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
        assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        assert page.evaluate("location.hash") == "#main"
        wide = page.eval_on_selector_all(
            ".scroll, pre", "all => all.filter((one) => one.scrollWidth > one.clientWidth && one.tabIndex < 0).length"
        )
        assert wide == 0


def test_it_reads_the_same_without_script_and_copies_with_it(browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(report_html(sample()), encoding="utf-8")
    with Opened(browser, path, 1280, "light", java_script_enabled=False) as plain:
        assert plain.page.locator("button").count() == 0
        text = plain.page.locator("main").text_content()
    with Opened(browser, path, 1280, "light") as opened:
        opened.page.get_by_role("button", name="copy command").click()
        opened.page.get_by_text("copied").or_(opened.page.get_by_text("selected")).first.wait_for()
        opened.page.eval_on_selector_all("button", "all => all.forEach((one) => one.remove())")
        assert opened.page.locator("main").text_content() == text
        assert opened.complaints == []


def test_print_shows_what_is_folded(browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(report_html(sample()), encoding="utf-8")
    with Opened(browser, path, 800, "dark") as opened:
        hash_after = opened.page.get_by_text("3" * 64)
        assert not hash_after.is_visible()
        opened.page.emulate_media(media="print")
        assert hash_after.is_visible()
        assert opened.page.evaluate("getComputedStyle(document.body).color") == "rgb(33, 30, 25)"
        assert not opened.page.get_by_role("navigation").is_visible()
        assert opened.page.pdf().startswith(b"%PDF")


def test_a_sheet_of_paper_has_tables_whose_words_stay_whole(browser, file):
    width = 718  # Of A4 in pixels, within the usual margins.
    with Opened(browser, file, width, "light") as opened:
        page = opened.page
        page.emulate_media(media="print")
        beyond = "all => Math.max(...all.map((one) => one.getBoundingClientRect().right))"
        assert page.eval_on_selector_all("body *", beyond) <= width
        rows = page.eval_on_selector_all(".cards tbody tr", "all => all.map((one) => getComputedStyle(one).display)")
        assert set(rows) == {"table-row"}
        narrow = "all => all.filter((one) => one.checkVisibility() && one.getBoundingClientRect().width < 60).length"
        assert page.eval_on_selector_all("tbody th", narrow) == 0
