"""A page in headless Chromium, with the network cut; skipped where it is not installed."""

import contextlib
import io
import shutil

import numpy as np
import pytest
from PIL import Image as Pillow

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    # without a GPU, WebGL is drawn by the processor
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PATIENCE_MS = 120_000  # a machine that does much else needs it


class Visit:
    """A page, the addresses that it asked for and the errors that it had."""

    def __init__(self, context):
        self.page = context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.addresses = []
        self.errors = []
        self.page.on("request", lambda request: self.addresses.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on(
            "console",
            lambda message: message.type == "error" and self.errors.append(message.text),
        )

    def go(self, path):
        self.page.goto(path.as_uri(), wait_until="commit")

    def wait_for_case(self, key):
        # a selector, since the page forbids to evaluate text
        self.page.wait_for_selector(f'html[data-state="ready {key}"]', state="attached")

    def check_that_nothing_left_the_machine(self):
        assert self.addresses
        assert all(address.startswith(("file:", "data:", "blob:")) for address in self.addresses)
        assert self.errors == []


@contextlib.contextmanager
def browser():
    """Headless Chromium; a function that opens a page of some size."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as starter:
        chromium = starter.chromium.launch(executable_path=CHROMIUM, args=FLAGS)

        def visit(width=1280, height=900, scheme="light"):
            context = chromium.new_context(
                viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
            )
            return Visit(context)

        yield visit
        chromium.close()


def colours(visit, selector):
    """How many pixels of an element are grey but not black, and how many have a colour."""
    picture = visit.page.locator(selector).screenshot(timeout=120_000)
    pixels = np.asarray(Pillow.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    spread = pixels.max(-1) - pixels.min(-1)
    return int(((spread < 12) & (pixels.max(-1) > 40)).sum()), int((spread > 60).sum())


def texts(visit, selector):
    return visit.page.locator(selector).all_inner_texts()
