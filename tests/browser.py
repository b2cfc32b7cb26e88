"""A page in Chromium, without a window."""

import base64
import contextlib
import os
import shutil

import pytest

CUT = """
const cut = [];
for (const svg of document.querySelectorAll("svg")) {
  const frame = svg.getBoundingClientRect();
  for (const text of svg.querySelectorAll("text")) {
    const box = text.getBoundingClientRect();
    if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 ||
        box.bottom > frame.bottom + 1) cut.push(text.textContent);
  }
}
return cut;
"""
SMALLEST = """
const sizes = [...document.querySelectorAll("svg text")].map((text) =>
  parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a);
return Math.min(...sizes.filter((size) => size > 0), 99);
"""


@contextlib.contextmanager
def chromium():
    """A page; skips the test where there is no browser, which .ci/run finds by these words."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="no browser: install selenium")
    programs = (
        shutil.which("chromium") or shutil.which("google-chrome"),
        shutil.which("chromedriver"),
    )
    if None in programs:
        pytest.skip("no browser: install Debian's packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for argument in ("headless=new", "disable-dev-shm-usage", "disable-gpu", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium does not start as root with it
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    try:
        yield Page(driver)
    finally:
        driver.quit()


class Page:
    def __init__(self, driver):
        self.driver = driver

    def find(self, css):
        return self.driver.find_element("css selector", css)

    def texts(self, css):
        found = self.driver.find_elements("css selector", css)
        return [element.get_attribute("textContent") for element in found]

    def run(self, script):
        return self.driver.execute_script(script)

    def until(self, condition, seconds=60):
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.driver, seconds).until(lambda _: condition())

    def resize(self, width, *, dark=False, height=900):
        """The window's width in pixels; below 600 that of a phone."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def check_layout(self):
        """Nothing is wider than the window, and no label of a picture is cut off or tiny."""
        root = "document.documentElement"
        assert self.run(f"return {root}.scrollWidth - {root}.clientWidth") == 0
        assert self.run(CUT) == []
        assert self.run(SMALLEST) >= 9

    def shoot(self, path, *, whole=True):
        """A PNG of the whole page, or of what the window shows."""
        how = {"captureBeyondViewport": whole}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", how)
        path.write_bytes(base64.b64decode(shot["data"]))
