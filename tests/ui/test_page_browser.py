"""The page in Chromium: the whole way from a name to saved files, in both color schemes."""

import pytest

from amnesia.domain import Cell
from amnesia.edits import ColumnEdit
from amnesia.outputs.commands import verify
from amnesia.outputs.write import edits_from_file
from amnesia.ui.session import Session
from support.browser import FAINT_TEXTS, Opened, chromium
from support.ui_client import serving

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(browser, source, live, recipe):
    """Of a server that runs as long as the tests; that of the command is in `tests/cli`."""
    with serving(Session(source, live, recipe)) as address:
        yield address


def settled(page):
    """Wait until nothing runs any more, with the answers of the last that was asked for."""
    page.wait_for_function("() => current === null && !waiting", timeout=60_000)


def found(opened):
    """The page after the search for the recipe's entity."""
    page = opened.page
    page.get_by_role("button", name="Find").click()
    page.get_by_text("A strong handle: cell 1:11 times −1, cell 0:3 times −2").wait_for(timeout=60_000)
    page.locator("#bars > div").nth(3).wait_for(timeout=60_000)
    settled(page)
    return page


@pytest.mark.parametrize(
    ("width", "scheme"), [pytest.param(390, "dark", marks=pytest.mark.exhaustive), (1280, "light")]
)
def test_from_a_name_to_saved_files(browser, address, source, tmp_path, width, scheme):
    with Opened(browser, address, width, scheme) as opened:
        page = found(opened)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(FAINT_TEXTS) == []
        before, after = page.text_content("#before"), page.text_content("#after")
        assert before and after and before != after
        page.get_by_label("Strength").fill("0")
        page.wait_for_function("() => document.querySelector('#bars .number').textContent === '1.00'", timeout=60_000)
        settled(page)
        assert page.text_content("#before") == page.text_content("#after") == before
        page.get_by_label("Strength").fill("0.5")
        slider = page.locator("#ranked input").first
        slider.fill("-2")
        settled(page)
        assert page.locator("#ranked output").first.text_content() == "×−2.00"
        page.get_by_role("button", name="map").first.click()
        page.get_by_text("alone, ×−2.00, moves the residual stream").wait_for()
        settled(page)
        for form, name in (("safetensors", "out"), ("edit", "edit.json")):
            page.get_by_label("As").first.select_option(form)
            page.get_by_label("To").last.fill(str(tmp_path / name))
            page.get_by_role("button", name="Save").click()
            page.get_by_text(f"written to {tmp_path / name}").wait_for(timeout=60_000)
            settled(page)
        page.get_by_role("button", name="Save").click()
        page.get_by_text(f"{tmp_path / 'edit.json'} exists").wait_for()
        assert list(verify(tmp_path / "out", source)) == [tmp_path / "out"]
        # The cell of the slider is one of those that were chosen, and stands in its place.
        (group,) = edits_from_file(tmp_path / "edit.json")
        assert group.edits == (ColumnEdit(Cell(0, 3), -0.5), ColumnEdit(Cell(1, 11), -2.0))
        assert {url.partition("?")[0].rpartition("/")[0] for url in opened.requests} == {address.rpartition("/")[0]}
        assert opened.complaints == []


def test_names_and_prompts_are_text_and_the_address_is_needed(browser, address):
    with Opened(browser, address, 1280, "dark") as opened:
        page, name = opened.page, "<img src=x onerror=alert(1)>"
        page.get_by_label("Name").fill(name)
        page.get_by_role("button", name="Find").click()
        page.locator("#said.failed").wait_for(timeout=60_000)
        assert name in page.text_content("#said")
        assert page.input_value("#prompt") == f"{name} is"
        assert page.locator("img").count() == 0
        page.locator("#ranked input").first.fill("-2")
        settled(page)
        page.locator("#map svg").wait_for()
        assert page.locator("img").count() == 0 and opened.complaints == []
    with Opened(browser, address.partition("?")[0], 1280, "dark") as opened:
        assert "the token is missing or wrong" in opened.page.text_content("body")


def test_fifty_clicks_are_one_search(browser, address):
    with Opened(browser, address, 1280, "light") as opened:
        opened.page.evaluate(
            "() => { for (let n = 0; n < 50; n += 1) document.querySelector('#search button').click(); }"
        )
        opened.page.locator("#bars > div").nth(3).wait_for(timeout=60_000)
        settled(opened.page)
        assert sum(url.endswith("/search") for url in opened.requests) == 1
