"""A headless Chromium, as packaged by Debian, and queries on its pages."""

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
_TIMEOUT_SECONDS = 180


class Browser:
    """A browser window with a size and color scheme, and the requests and messages of its pages."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, address: str, width: int = 1920, scheme: str = "light") -> None:
        """Open a page with a window size and color scheme."""
        self.driver.get("about:blank")
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.command("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get(address)

    def command(self, name: str, parameters: dict[str, Any]) -> Any:
        return self.driver.execute_cdp_cmd(name, parameters)

    def evaluate(self, script: str, *arguments: Any) -> Any:
        """The value of a JavaScript expression."""
        return self.driver.execute_script(f"return {script}", *arguments)

    def cpu_seconds(self) -> float:
        """CPU time of the page's main thread, which excludes waiting for other processes."""
        metrics = self.command("Performance.getMetrics", {})["metrics"]
        return next(float(metric["value"]) for metric in metrics if metric["name"] == "ThreadTime")

    def wait_for(self, script: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + _TIMEOUT_SECONDS
        while not self._is_true(script):
            assert time.monotonic() < end, f"timed out waiting for {script}"
            time.sleep(0.05)

    def _is_true(self, script: str) -> bool:
        try:
            return bool(self.evaluate(script))
        except WebDriverException:
            # The page is being replaced.
            return False

    def wait_until_drawn(self) -> None:
        """Wait until every figure has been drawn."""
        self.wait_for("[...document.querySelectorAll('.plot')].every((plot) => plot.dataset.drawn)")

    def console_messages(self) -> list[str]:
        """Warnings and errors in the console, including violations of the content security policy."""
        return [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def requests(self) -> list[str]:
        """URLs requested since the last call."""
        urls = []
        for entry in self.driver.get_log("performance"):  # type: ignore[no-untyped-call]
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                urls.append(str(message["params"]["request"]["url"]))
        return [url for url in urls if not url.startswith(("data:", "about:"))]

    def screenshot(self, name: str) -> Path:
        """Save a screenshot of the full page."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{name}.png"
        width, height = self.evaluate(
            "[document.documentElement.clientWidth, document.body.scrollHeight]"
        )
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, 16000), "scale": 1}
        image = self.command("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        path.write_bytes(base64.b64decode(image["data"]))
        return path


@contextmanager
def start_browser() -> Iterator[Browser]:
    """A browser without background requests."""
    options = Options()
    options.binary_location = str(CHROMIUM)
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-dev-shm-usage",  # Ray's object stores may have filled it.
        "disable-background-networking",
        "disable-component-update",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    try:
        browser = Browser(driver)
        browser.command("Performance.enable", {})
        yield browser
    finally:
        driver.quit()
