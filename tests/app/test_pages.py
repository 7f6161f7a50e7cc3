"""The application in a browser, as visitors use it."""

import shutil
import time
import zipfile
from pathlib import Path

import pytest

from ..browser import Browser

NAMES = ["Baltimore Oriole", "Hooded Oriole", "Indigo Bunting", "Orchard Oriole", "Scott Oriole"]
RANKED = "[...document.querySelectorAll('#ranking .name')].map((x) => x.textContent)"
FIGURES = "document.querySelectorAll('#heads figure').length"
SHOWN = "[...document.querySelectorAll('#heads figure')].filter((x) => x.offsetParent).length"
TOAST = "document.querySelector('.toast-body')?.textContent ?? ''"


def visit(browser: Browser, address: str, **screen) -> None:
    """Open the page, and wait until it works."""
    browser.open(address, **screen)
    browser.wait_for("document.querySelectorAll('#examples button').length > 0")


def see(browser: Browser, photograph: Path) -> list[str]:
    """Upload a photograph. Returns the ranking."""
    browser.upload("input[type=file]", photograph)
    browser.wait_for(f"{FIGURES} > 0")
    return browser.run(RANKED)


def open_tab(browser: Browser, name: str) -> None:
    """Choose a tab, which on a narrow screen is in a menu."""
    named = f"(x) => x.textContent.trim() === '{name}'"
    tabs = "[...document.querySelectorAll('[role=tab]')]"
    if browser.run(f"{tabs}.some({named})"):
        browser.run(f"{tabs}.find({named}).click()")
        return
    browser.run("[...document.querySelectorAll('button')].find((x) => x.ariaLabel === 'More tabs').click()")
    browser.wait_for(f"[...document.querySelectorAll('.overflow-dropdown button')].some({named})")
    browser.run(f"[...document.querySelectorAll('.overflow-dropdown button')].find({named}).click()")


def text(browser: Browser, place: str) -> str:
    return browser.run(f"document.querySelector('{place}').textContent.trim()")


def explain_many(browser: Browser, *files: Path) -> str:
    """Upload files in the tab of many photographs. Returns what the page says of them."""
    open_tab(browser, "Many photographs")
    browser.upload("input[type=file][multiple]", *files)
    browser.wait_for(f"document.body.textContent.includes('{files[-1].name.partition('.')[0]}')")
    browser.run("document.querySelector('#start').click()")
    browser.wait_for("document.querySelector('#gallery img') !== null")
    return text(browser, "#summary")


@pytest.mark.parametrize("width", [1280, 390])
def test_a_photograph_is_ranked_explained_and_compared(address, browser, photograph, width):
    browser.requests.clear()
    visit(browser, address, width=width, dark=width == 390)
    ranked = see(browser, photograph)
    assert sorted(ranked) == NAMES
    assert browser.run(SHOWN) == browser.run(FIGURES) == 4  # of a model with four heads

    before = browser.run("document.querySelector('#ranking .value').textContent")
    browser.run("document.querySelectorAll('#heads input').forEach((box) => box.click())")
    browser.wait_for("document.querySelector('#blurred').textContent.includes('without heads 0, 1, 2, 3')")
    assert text(browser, "#blurred").startswith(f"{ranked[0]}: {before} → ")
    browser.run("document.querySelector('#heads .over').click()")
    browser.wait_for("document.querySelectorAll('#place li').length === 3")

    slide = "(x) => { x.value = 2; x.dispatchEvent(new Event('input', {bubbles: true})) }"
    browser.run(f"({slide})(document.querySelector('input[type=range]'))")
    browser.wait_for(f"{SHOWN} === 2")

    open_tab(browser, "A, not B")
    browser.wait_for("document.querySelectorAll('#comparison img').length === 7")
    assert text(browser, ".pc-legend") == f"for {ranked[1]}for {ranked[0]}"
    assert browser.run("document.documentElement.scrollWidth") <= width
    open_tab(browser, "Field guide")
    browser.wait_for("document.querySelector('iframe')?.contentDocument?.title !== ''")
    assert browser.run("document.querySelector('iframe').contentDocument.title") == ranked[0].replace(" ", "_")
    assert [url for url in browser.requests if not url.startswith((address, "data:", "blob:"))] == []


def test_an_example_is_seen_through_the_eyes_of_another_class(address, browser):
    visit(browser, address)
    browser.run("document.querySelectorAll('#examples button')[2].click()")
    browser.wait_for(f"{FIGURES} > 0")
    last = browser.run(RANKED)[-1]
    before = browser.run("document.querySelector('#heads img').src")
    browser.run("document.querySelector('#eyes input').focus()")
    browser.run(
        f"[...document.querySelectorAll('[role=option]')].find((x) => x.textContent.includes('{last}'))"
        ".dispatchEvent(new MouseEvent('mousedown', {bubbles: true}))"
    )
    browser.wait_for(f"document.querySelector('#heads img').src !== {before!r}")


def test_a_bad_file_says_why_in_one_line_and_the_session_goes_on(address, browser, photograph, tmp_path):
    visit(browser, address)
    bad = tmp_path / "letter.jpg"
    bad.write_text("Dear Sir")
    browser.upload("input[type=file]", bad)
    browser.wait_for(f"({TOAST}) !== ''")
    reason = "letter.jpg: not an image that can be read; expected JPEG, PNG, TIFF, WebP or the like."
    assert reason in browser.run(TOAST)
    assert text(browser, "#ranking") == reason
    assert sorted(see(browser, photograph)) == NAMES


def test_many_photographs_give_a_table_and_sheets(address, browser, bird_folder, tmp_path):
    photographs = sorted(bird_folder.glob("test/*/*.jpg"))
    shutil.copy(photographs[0], tmp_path / "=one.jpg")
    (tmp_path / "bad.jpg").write_text("not a photograph")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        for number, path in enumerate(photographs[1:3]):
            archive.write(path, f"folder/{number}.jpg")
        archive.writestr("folder/notes.txt", "left out")
        archive.writestr("__MACOSX/._0.jpg", "left out")
        archive.writestr("folder/broken.png", "not a photograph either")
        archive.writestr("../../outside.png", "left out")
    visit(browser, address)
    summary = explain_many(browser, tmp_path / "=one.jpg", tmp_path / "bad.jpg", tmp_path / "more.zip")
    assert summary.startswith("5 photographs. 2 could not be read:")
    assert "bad.jpg: not an image that can be read" in summary
    assert "broken.png: not an image that can be read" in summary
    assert browser.run("document.querySelectorAll('#gallery img').length") == 3
    table = browser.run("fetch(document.querySelector('#table a').href).then((x) => x.text())").splitlines()
    assert len(table) == 6
    assert table[0].startswith("photograph,label,score,level,label_1")
    size = browser.run("fetch(document.querySelector('#sheets a').href).then((x) => x.blob()).then((x) => x.size)")
    assert size > 10_000


def test_two_visitors_share_the_model_and_nothing_else(address, browser, bird_folder, tmp_path):
    first, second = sorted(bird_folder.glob("test/*/*.jpg"))[::5][:2]
    visit(browser, address)
    ranked = see(browser, first)
    own = browser.run("document.querySelector('#heads img').src")
    other = Browser()
    try:
        visit(other, address)
        assert other.run(FIGURES) == 0
        see(other, second)
        assert other.run("document.querySelector('#heads img').src") != own
        theirs = other.run(
            "document.querySelector('img[alt]:not([alt=\"\"])') && "
            "[...document.images].map((x) => x.src).find((x) => x.includes('/sessions/'))"
        )
        assert Path(theirs.partition("file=")[2]).is_file()
    finally:
        other.close()
    browser.run("document.querySelector('#heads input').click()")
    browser.wait_for("document.querySelector('#blurred').textContent.includes('→')")
    assert text(browser, "#blurred").startswith(ranked[0])
    gone = time.monotonic() + 60
    while Path(theirs.partition("file=")[2]).exists():
        assert time.monotonic() < gone, "the files of a visitor who left are still there"
        time.sleep(0.1)


def test_axe_finds_no_serious_violation(address, browser, photograph):
    for dark in (False, True):
        visit(browser, address, dark=dark)
        see(browser, photograph)
        fading = "document.getAnimations().some((x) => x instanceof CSSTransition)"
        browser.wait_for(f"!document.querySelector('.pending') && !{fading}")  # Gradio pales what is not ready
        assert browser.serious_violations("#heads, #ranking, #blurred, #place, #examples, #comparison") == []
