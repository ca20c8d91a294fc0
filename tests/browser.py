"""A real headless Chromium, as Debian packages it, and what one must know of a page in it."""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SCREENSHOTS = Path(__file__).parent.parent / "results" / "screenshots"
_SECONDS = 180


class Browser:
    """One window, its sizes and colour schemes, and what its pages asked for and complained of."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, address: str, width: int = 1920, scheme: str = "light") -> None:
        """Open a page in a new size and scheme."""
        self.driver.get("about:blank")
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", size)
        wanted = [{"name": "prefers-color-scheme", "value": scheme}]
        self.command("Emulation.setEmulatedMedia", {"features": wanted})
        self.driver.get(address)

    def command(self, name: str, parameters: dict[str, Any]) -> Any:
        return self.driver.execute_cdp_cmd(name, parameters)

    def ask(self, script: str, *arguments: Any) -> Any:
        """The value of a script's expression."""
        return self.driver.execute_script(f"return {script}", *arguments)

    def computed(self) -> float:
        """Seconds for which the page's own thread has computed, however long others kept it waiting."""
        found = self.command("Performance.getMetrics", {})["metrics"]
        return next(float(each["value"]) for each in found if each["name"] == "ThreadTime")

    def wait(self, script: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + _SECONDS
        while not self._holds(script):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.05)

    def _holds(self, script: str) -> bool:
        try:
            return bool(self.ask(script))
        except WebDriverException:
            # the page is just being left for another
            return False

    def wait_until_drawn(self) -> None:
        """Wait until every figure has been drawn."""
        self.wait("[...document.querySelectorAll('.plot')].every((each) => each.dataset.drawn)")

    def complaints(self) -> list[str]:
        """What the pages logged as warnings or errors, among them what the security policy forbade."""
        return [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def requests(self) -> list[str]:
        """Addresses that the pages asked for since the last call."""
        found = []
        for entry in self.driver.get_log("performance"):  # type: ignore[no-untyped-call]
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(str(message["params"]["request"]["url"]))
        return [each for each in found if not each.startswith(("data:", "about:"))]

    def screenshot(self, name: str) -> Path:
        """Keep a picture of the whole page."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{name}.png"
        width, height = self.ask("[document.documentElement.clientWidth, document.body.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, 16000), "scale": 1}
        taken = self.command("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        path.write_bytes(base64.b64decode(taken["data"]))
        return path


@contextmanager
def started() -> Iterator[Browser]:
    """A browser that asks for nothing by itself."""
    options = Options()
    options.binary_location = str(CHROMIUM)
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-dev-shm-usage",  # which Ray's object stores may have filled
        "disable-background-networking",
        "disable-component-update",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    try:
        made = Browser(driver)
        made.command("Performance.enable", {})
        yield made
    finally:
        driver.quit()
