"""The page that shows a report, in Chromium: nothing is fetched, nothing overflows, everything can be read."""

import itertools
import os
import shutil

import pytest

from amnesia.report.page import report_html
from support.report_sample import alone, hostile, sample

pytestmark = pytest.mark.browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
DOCUMENTS = {"everything": sample(), "one model": alone(), "long words": hostile("supercalifragilistic" * 12)}

# Texts with too little contrast to what is behind them, by WCAG 2.2: 4.5 : 1, or 3 : 1 where they are large.
FAINT_TEXTS = """() => {
  const parsed = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const luminance = (color) => {
    const [r, g, b] = color.slice(0, 3).map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const color = parsed(getComputedStyle(one).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility() || ["TITLE", "DESC", "title", "desc"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const pair = [parsed(element.closest("svg") ? style.fill : style.color), behind(element)].map(luminance);
    const contrast = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (contrast < (large ? 3 : 4.5)) found.push([node.data.trim(), contrast]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser to open the page in: install one of {', '.join(BROWSERS)}")
    with sync_api.sync_playwright() as playwright:
        # Chromium keeps its sandbox from the superuser.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=DOCUMENTS.values(), ids=DOCUMENTS)
def file(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report_html(request.param), encoding="utf-8")
    assert path.stat().st_size < 1_000_000
    return path


class Opened:
    """A page with all that it folds away unfolded, and a record of what went wrong or was asked for."""

    def __init__(self, browser, file, width, scheme, **options):
        self.context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, **options)
        self.page = self.context.new_page()
        self.requests, self.complaints = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(file.as_uri())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def unfold(self):
        self.page.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_every_width_in_both_schemes(browser, file, width, scheme):
    with Opened(browser, file, width, scheme) as opened:
        for folded in (True, False):
            assert opened.page.evaluate("document.documentElement.scrollWidth") <= width, f"folded: {folded}"
            assert opened.page.evaluate(FAINT_TEXTS) == []
            opened.unfold()
        assert opened.requests == [file.as_uri()]
        assert opened.complaints == []
        background = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(250, 248, 244)", "dark": "rgb(21, 23, 26)"}[scheme]


@pytest.mark.parametrize("width", [390, 1280])
def test_what_a_screen_reader_meets(browser, file, width):
    with Opened(browser, file, width, "light") as opened:
        opened.unfold()
        page = opened.page
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
