"""Draw the picture of the application for the documentation: `python -m tests.app.picture docs/images/app.jpg`."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from promptcam_hf.app.serve import serving

from ..browser import Browser

# At the crown of the bird
CLICK = """
    const picture = document.querySelectorAll('#heads .over')[3], box = picture.getBoundingClientRect();
    const place = {clientX: box.left + 0.45 * box.width, clientY: box.top + 0.37 * box.height};
    picture.dispatchEvent(new MouseEvent('click', {bubbles: true, ...place}));
"""


def draw(picture: Path, example: int = 1) -> None:
    """A screenshot of an example whose three most important heads are blurred."""
    browser = Browser()
    try:
        with serving(host="127.0.0.1", device="cpu") as address, TemporaryDirectory() as folder:
            browser.open(address, height=860)
            browser.wait_for("document.querySelectorAll('#examples button').length > 0")
            browser.run(f"document.querySelectorAll('#examples button')[{example}].click()")
            browser.wait_for("document.querySelectorAll('#heads img').length > 0")
            browser.run("[0, 1, 2].forEach((head) => document.querySelectorAll('#heads input')[head].click())")
            browser.run(CLICK)
            browser.wait_for("document.querySelector('#blurred').textContent.split(',').length === 3")
            browser.wait_for("document.querySelectorAll('#place li').length === 3")
            browser.run("new Promise((done) => setTimeout(done, 1500))")  # until nothing moves any more
            browser.screenshot(Path(folder) / "app.png")
            Image.open(Path(folder) / "app.png").convert("RGB").save(picture, quality=85)
    finally:
        browser.close()


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
