"""Pages in a real browser: the server's page at work, reports and comparisons as they look."""

import json
import os
from pathlib import Path

import pytest

from erc_jax.compare import compare, write_comparison
from erc_jax.report import write_report
from tests.browser import chromium
from tests.fabricated import dialogues, make_run
from tests.stand_in import HOST, StandIn, listening

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page():
    with chromium() as page:
        yield page


def talk(*texts, **more):
    return {"utterances": [{"speaker": "AB"[i % 2], "text": t} for i, t in enumerate(texts)]} | more


def test_the_page_in_a_browser(page, tmp_path):
    from selenium.webdriver.common.keys import Keys

    def label(text):
        page.find("#clear").click()
        page.find("#text").send_keys(text, Keys.CONTROL, Keys.ENTER)

    with listening(StandIn()) as port:
        page.resize(1280)
        page.driver.get(f"{HOST}:{port}/")
        page.until(lambda: "stand_in" in page.find("#model").text)
        assert "learned from audio, and labels here without" in page.find("#model").text
        page.check_layout()
        page.shoot(tmp_path / "empty-1280.png")

        # A conversation is labelled, by the keyboard alone; hover and focus show probabilities.
        label("Ann: We won!\nBo: Oh: that's nice.\n\nAnn: I lost the cup.")
        page.until(lambda: page.texts(".emotion") == ["joy 70%", "neutral 70%", "sadness 70%"])
        assert page.texts(".said") == [
            "Ann: We won!",
            "Bo: Oh: that's nice.",
            "Ann: I lost the cup.",
        ]
        assert page.texts(".more") == ["shift ↓ negative", "shift ↓ negative"]
        assert len(page.texts(".curve circle")) == 3
        chances = page.find(".turn:nth-child(1) .chances")
        assert not chances.is_displayed()
        page.run("document.querySelector('.emotion').focus()")
        assert chances.is_displayed()
        assert chances.text.split("\n")[:2] == ["joy", "70%"]
        page.check_layout()
        page.shoot(tmp_path / "probabilities-1280.png")
        page.find(".emotion").send_keys(Keys.ESCAPE)
        assert not chances.is_displayed()

        # The times of a chat log are no names, nor JSON; what has a colon may be an address.
        for log in ("10:31 Ann: We won!\n10:32:07 Bo: see http://x.y", "[10:31] Ann: We won!"):
            label(log)
            page.until(lambda: page.texts(".emotion"))
            said = ["Ann: We won!", "Bo: see http://x.y"]
            assert page.texts(".said") == said[: len(log.splitlines())]
        label("Ann: We won!\nBo: Oh: that's nice.\n\nAnn: I lost the cup.")
        page.until(lambda: len(page.texts(".emotion")) == 3)

        # It goes on, and an earlier label changes.
        page.find("#speaker").send_keys("Bo")
        page.find("#said").send_keys("Just kidding.", Keys.ENTER)
        page.until(lambda: page.texts(".changed") == ["was joy"])
        assert page.texts(".emotion")[0] == "surprise 70%"
        assert "1 earlier label has changed" in page.find("#status").text

        page.find(".ask-reply").click()
        page.until(lambda: page.texts(".reply") == ["Tell me more: Just kidding."])

        page.driver.execute_cdp_cmd(
            "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
        )
        page.find("#download").click()
        page.until(lambda: (tmp_path / "labelled.jsonl").is_file())
        (record,) = map(json.loads, (tmp_path / "labelled.jsonl").read_text().splitlines())
        assert [u["emotion"] for u in record["utterances"]][:2] == ["surprise", "neutral"]

        # Mistakes are told in words: the page's own, the server's, the model's.
        for text, reason in (
            ("Ann: a\nnobody said this", "Line 2: expected a name, a colon"),
            ("Ann: a\nsee http://x.y", "Line 2: expected a name, a colon"),
            ('[{"id": "d"}]', "“utterances”: is missing"),
            ('{"id": "d"}', "“utterances”: is missing"),
            ('{"utterances": [\n', "is not JSON"),
            ("Ann: This is too long.", "too long for this model"),
        ):
            label(text)
            page.until(lambda reason=reason: reason in page.find("#error").text)
        page.run("document.querySelector('#text').value += 'b'.repeat(5001)")
        page.find("#label").click()
        page.until(
            lambda: "Turn 1, line 1, “text”: expected at most 5000" in page.find("#error").text
        )
        page.check_layout()
        page.shoot(tmp_path / "error-1280.png")

        # What is typed is text, wherever it comes from and goes to.
        evil = "<img src=x onerror=document.title='evil'>"
        line = json.dumps(talk(f"We won! {evil}", "lost", id=evil) | {"x": evil})
        label(f"{line}\n{line}".replace('"A"', json.dumps(evil)))
        page.until(lambda: len(page.texts(".emotion")) == 4)
        assert evil in page.texts(".talk h2")[0]
        assert page.texts(".said")[0] == f"{evil}: We won! {evil}"
        assert not page.texts("img")
        assert page.driver.title == "Emotions in a conversation"

        # A long one, on a wide and a narrow screen, light and dark.
        for width in (1280, 390):
            for dark in (False, True):
                page.resize(width, dark=dark)
                page.find("#clear").click()
                page.find("#example").click()
                page.until(lambda: len(page.texts(".emotion")) == 8)
                page.check_layout()
                page.shoot(tmp_path / f"labelled-{width}{'-dark' if dark else ''}.png")

    page.find("#label").click()
    page.until(lambda: "cannot be reached" in page.find("#error").text)
    complaints = [
        entry for entry in page.driver.get_log("browser") if "Security" in entry["message"]
    ]
    assert complaints == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_reports_and_comparisons_are_not_cut_off(page, tmp_path, width, dark):
    runs = [
        make_run(tmp_path / "a", {0: dialogues(1, 0.4)}),
        make_run(
            tmp_path / "a-run-with-a-rather-long-name", {0: dialogues(2, 0.9), 7: dialogues(3, 0.9)}
        ),
    ]
    write_comparison(compare(runs), tmp_path / "compare.html")
    page.resize(width, dark=dark)
    for file in (write_report(runs[1]), tmp_path / "compare.html"):
        page.driver.get(file.as_uri())
        page.check_layout()
        page.shoot(tmp_path / f"{file.stem}-{width}.png")


RUNS = "ERC_JAX_PICTURES_OF"


@pytest.mark.skipif(RUNS not in os.environ, reason=f"{RUNS} names no runs")
def test_the_pictures_of_the_documentation(page, tmp_path):
    """Makes docs/images/ anew, of the trained runs in $ERC_JAX_PICTURES_OF.

    Workdirs, with commas between them: the first is served and reported, all are compared.
    """
    from erc_jax.predict import Recognizer
    from erc_jax.serve.__main__ import about_run

    runs = [Path(workdir) for workdir in os.environ[RUNS].split(",")]
    images = Path(__file__).parent.parent / "docs" / "images"
    images.mkdir(exist_ok=True)

    def shoot(name, height):
        page.resize(1280, height=height)
        page.check_layout()
        page.shoot(images / f"{name}.png", whole=False)
        assert (images / f"{name}.png").stat().st_size < 200_000

    recognizer = Recognizer.from_pretrained(runs[0])
    with listening(recognizer, about_run(runs[0], recognizer)) as port:
        page.driver.get(f"{HOST}:{port}/")
        page.until(lambda: "Model" in page.find("#model").text)
        page.find("#example").click()
        page.until(lambda: len(page.texts(".emotion")) == 8, seconds=300)
        page.resize(1280, height=1150)
        page.run("document.querySelectorAll('.emotion')[7].focus(); scrollTo(0, 0)")
        shoot("serve", 1150)
    compared = tmp_path / "compare.html"
    write_comparison(compare(runs), compared)
    reports = [write_report(run).absolute() for run in runs]
    for name, file, height in (("report", reports[0], 1400), ("compare", compared, 1100)):
        page.driver.get(file.as_uri())
        shoot(name, height)
    # And all of them whole, to be looked at.
    for file in (*reports, compared):
        page.driver.get(file.as_uri())
        for width in (1280, 390):
            for dark in (False, True):
                page.resize(width, dark=dark)
                page.check_layout()
                scheme = "dark" if dark else "light"
                page.shoot(tmp_path / f"{file.parent.name}-{file.stem}-{width}-{scheme}.png")
