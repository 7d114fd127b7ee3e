"""Chromium, and what tests of pages look at in it."""

from __future__ import annotations

import contextlib
import os
import shutil

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")

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


@contextlib.contextmanager
def chromium():
    """The browser of this machine; skips the test where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser to open the page in: install one of {', '.join(BROWSERS)}")
    with sync_api.sync_playwright() as playwright:
        # Chromium keeps its sandbox from the superuser.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        # A process less; there is nothing to draw fast.
        arguments += ["--disable-gpu", "--in-process-gpu"]
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


class Opened:
    """A page, of a file or an address, and a record of what went wrong or was asked for."""

    def __init__(self, browser, place, width, scheme, **options):
        self.context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, **options)
        self.page = self.context.new_page()
        self.requests, self.complaints = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(place if isinstance(place, str) else place.as_uri())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def look(self, width, scheme):
        """Show the page at another width and in another color scheme."""
        self.page.set_viewport_size({"width": width, "height": 800})
        self.page.emulate_media(color_scheme=scheme)

    def unfold(self):
        self.page.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
