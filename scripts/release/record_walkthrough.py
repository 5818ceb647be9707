r"""The README's walk-through: a real browser uses a running app, and its screenshots become one GIF.

    python app.py --port 7860 &
    python scripts/release/record_walkthrough.py --url http://127.0.0.1:7860 \
        --out docs/walkthrough.gif --still docs/search.png --phones docs/phones.webp

Needs Debian's chromium and playwright, as the tests do (requirements-dev.txt).
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

QUERIES = Path(__file__).resolve().parents[2] / "tests/search/queries.json"
PHONE, PHONES = {"width": 390, "height": 844}, 20
VIEW = {"width": 1100, "height": 900}
GIF_WIDTH = 720
WAIT_MS = 60_000
FLAGS = ["--no-sandbox", "--disable-gpu", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--out", type=Path, required=True, help="the .gif to write")
    parser.add_argument("--still", type=Path, help="also save the page after the first search here, as .png")
    parser.add_argument("--phones", type=Path, help="also save twenty judged queries on a phone, one picture")
    return parser.parse_args(argv)


class Film:
    """Frames and how long each is shown."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.frames: list[Image.Image] = []
        self.times: list[int] = []

    def take(self, milliseconds: int) -> None:
        """One frame of the page as it is."""
        picture = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        size = GIF_WIDTH, round(picture.height * GIF_WIDTH / picture.width)
        self.frames.append(picture.resize(size, Image.Resampling.LANCZOS))
        self.times.append(milliseconds)

    def save(self, path: Path) -> None:
        """One palette for the whole film, so that nothing flickers and little changes between frames."""
        sheet = Image.new("RGB", (GIF_WIDTH, sum(frame.height for frame in self.frames)))
        top = 0
        for frame in self.frames:
            sheet.paste(frame, (0, top))
            top += frame.height
        palette = sheet.quantize(128, dither=Image.Dither.NONE)
        frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in self.frames]
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=self.times, loop=0, optimize=True)


def search(film: Film, still: Path | None) -> None:
    """Words, letter by letter, then a spoken example."""
    page = film.page
    page.locator(".fm-tile img").first.wait_for()
    page.get_by_role("button", name="Pause").click()  # no frame between two examples
    page.wait_for_function("[...document.images].every((image) => image.naturalWidth > 0 || !image.offsetParent)")
    page.wait_for_timeout(1500)
    film.take(1800)
    field = page.get_by_placeholder("Describe what you are looking for")
    words = "a ship on the sea"
    for end in range(5, len(words) + 1, 4):
        field.fill(words[:end])
        film.take(160)
    field.fill(words)
    page.keyboard.press("Enter")
    answered(page, "“a ship on the sea”")
    film.take(2600)
    if still:
        page.set_viewport_size({"width": VIEW["width"], "height": 1240})
        page.evaluate("window.scrollTo(0, 0)")
        page.wait_for_timeout(800)
        page.screenshot(path=still)
        view: Any = VIEW
        page.set_viewport_size(view)
    page.get_by_role("button", name="“a red racing car”").click()
    answered(page, "your sound")
    film.take(2600)


def answered(page: Page, asked: str) -> None:
    """Wait for an answer and its pictures."""
    page.wait_for_function(
        "(asked) => document.querySelector('.fm-status')?.innerText.includes(asked)", arg=asked, timeout=WAIT_MS
    )
    page.wait_for_function(
        "[...document.querySelectorAll('.fm-items li:not([hidden]) img')].every((i) => i.naturalWidth > 0)"
    )
    page.wait_for_timeout(600)


def explore(film: Film) -> None:
    """The map, and where words land."""
    page = film.page
    page.get_by_role("tab", name="Explore").click()
    page.locator("#fm-map canvas[data-ready]").wait_for(timeout=WAIT_MS)
    page.locator("#fm-land").locator("textarea, input").press_sequentially("a cat")
    page.wait_for_function("document.querySelector('#fm-nearest')?.innerText.includes('a cat')", timeout=WAIT_MS)
    page.wait_for_timeout(800)
    film.take(2200)


def draw(film: Film) -> None:
    """A spoken example becomes a picture, step by step."""
    page = film.page
    page.get_by_role("tab", name="Sound to picture").click()
    page.wait_for_timeout(800)
    page.get_by_label("Words, alone or blended with the sound").fill("a birthday cake")
    film.take(900)
    page.locator("#fm-draw").click()
    for _ in range(6):
        page.wait_for_timeout(500)
        film.take(250)
    page.wait_for_function(
        "!document.querySelector('#fm-draw-status progress') && document.querySelector('#fm-made img')",
        timeout=WAIT_MS,
    )
    page.wait_for_timeout(600)
    film.take(2600)


def phones(page: Page, path: Path) -> None:
    """Save the first screens of every third typed query that judge_queries.py judges, beside one another."""
    queries = [q["text"] for q in json.loads(QUERIES.read_text(encoding="utf-8"))["queries"] if "text" in q]
    chosen = queries[:: max(1, len(queries) // PHONES)][:PHONES]
    screens = []
    for words in chosen:
        page.get_by_placeholder("Describe what you are looking for").fill(words)
        page.keyboard.press("Enter")
        answered(page, f"“{words}”")
        page.evaluate("window.scrollTo(0, 0)")
        screens.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    columns, size = PHONES // 2, (PHONE["width"] // 2, PHONE["height"] // 2)
    sheet = Image.new("RGB", (columns * (size[0] + 8), 2 * (size[1] + 8)), "#a8a29e")
    for number, screen in enumerate(screens):
        at = (number % columns) * (size[0] + 8) + 4, (number // columns) * (size[1] + 8) + 4
        sheet.paste(screen.resize(size, Image.Resampling.LANCZOS), at)
    sheet.save(path, quality=70, method=6)


def main(argv: list[str] | None = None) -> int:
    """Record; 0 on success."""
    args = parse(argv)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", headless=True, args=FLAGS)
        view: Any = VIEW
        page = browser.new_page(viewport=view)
        page.goto(args.url)
        film = Film(page)
        search(film, args.still)
        explore(film)
        draw(film)
        film.save(args.out)
        if args.phones:
            narrow: Any = PHONE
            page = browser.new_page(viewport=narrow)
            page.goto(args.url)
            phones(page, args.phones)
        browser.close()
    print(f"{args.out}: {len(film.frames)} frames, {args.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
