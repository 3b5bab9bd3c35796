"""A report as a browser shows it: on a phone, at a desk, in the dark, on paper.

``python tests/pages/look.py PAGE.html ... [--output FOLDER]`` opens each page in a Chromium (``CHROMIUM`` names it),
and fails for a message in the console, a request that leaves the page, text wider than the screen or too faint to read,
or a picture that did not load, on screen and in print. What is drawn within a picture it does not see. FOLDER gets what
was seen, as PNG and PDF. Needs `playwright`, which `make pages` installs, and a browser, which it does not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

DEVICES = {"phone": (390, 844), "desk": (1400, 900)}
SCHEMES = ("light", "dark")

# What stands wider than the window and does not scroll within a box of its own.
_TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
_NOT_LOADED = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
# Of text and what is behind it, the least contrast by WCAG's formula of what is drawn over a plain background.
_CONTRAST = """() => {
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const linear = x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
  const lum = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0.99) return c;
    }
    return [255, 255, 255];
  };
  let least = 21;
  const text = "h1, h2, h3, p, li, td, th, code, pre, dt, dd, a, span, figcaption, summary";
  for (const e of document.querySelectorAll(text)) {
    if (!e.offsetParent || !e.textContent.trim()) continue;
    const [a, b] = [lum(parse(getComputedStyle(e).color)), lum(behind(e))];
    least = Math.min(least, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return least;
}"""


def complaints(browser: Browser, page: Path, folder: Path | None) -> Iterator[str]:
    """What is wrong with a page, device by device."""
    address, name = page.resolve().as_uri(), "-".join(page.parent.parts[-3:])
    for device, (width, height) in DEVICES.items():
        for scheme in SCHEMES:
            look: dict[str, Any] = {"viewport": {"width": width, "height": height}, "color_scheme": scheme}
            context = browser.new_context(**look)
            tab = context.new_page()
            said: list[str] = []
            tab.on("console", lambda message, said=said: said.append(f"console: {message.text}"))
            tab.on("pageerror", lambda error, said=said: said.append(f"error: {error}"))
            tab.on("request", lambda request, said=said: said.extend(_left(request.url, address)))
            tab.goto(address, wait_until="load")
            said += _seen(tab)
            if device == "desk":
                # On paper: black on white, whatever the scheme.
                tab.emulate_media(media="print")
                said += [f"printed: {what}" for what in _seen(tab)]
                if folder is not None and scheme == "light":
                    tab.pdf(path=folder / f"{name}.pdf", format="A4")
                tab.emulate_media(media="screen")
            if folder is not None:
                tab.screenshot(path=folder / f"{name}-{device}-{scheme}.png", full_page=True)
            context.close()
            yield from (f"{page}, {device}, {scheme}: {what}" for what in said)


def _left(url: str, address: str) -> list[str]:
    return [] if url == address or url.startswith(("data:", "about:")) else [f"request of {url}"]


def _seen(tab: Page) -> list[str]:
    found = []
    wide, missing, contrast = (tab.evaluate(script) for script in (_TOO_WIDE, _NOT_LOADED, _CONTRAST))
    if wide > 0:
        found.append(f"{wide} pixels wider than the window")
    if missing:
        found.append(f"{missing} pictures did not load")
    if contrast < 4.5:
        found.append(f"contrast of text {contrast:.1f}, at least 4.5 asked")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE.html")
    parser.add_argument("--output", type=Path, help="folder for what was seen")
    options = parser.parse_args()
    found = os.environ.get("CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if found is None:
        parser.error("expected a Chromium, found none; install one, or name it in CHROMIUM")
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
    launch: dict[str, Any] = {"executable_path": found, "args": ["--no-sandbox"]}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**launch)
        wrong = [what for page in options.pages for what in complaints(browser, page, options.output)]
        print(f"{len(options.pages)} pages, {len(DEVICES) * len(SCHEMES)} views each, {browser.version}")
        browser.close()
    print("\n".join(wrong) or "nothing wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
