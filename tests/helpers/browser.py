"""A real browser without a window: Chromium with its driver (Debian's packages chromium and chromium-driver).

From the command line it makes pictures of a page: python tests/helpers/browser.py report/index.html FOLDER
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

BROWSER, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
WIDTHS = {"wide": 1280, "narrow": 390}  # pixels: a laptop's window, and a phone


@contextmanager
def browser(width: int = 1280, height: int = 900, offline: bool = True) -> Iterator[webdriver.Chrome]:
    """Chromium, by default with the network switched off; it plays sound without a click of the user."""
    options = Options()
    options.binary_location = BROWSER or ""
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--mute-audio",
        "--autoplay-policy=no-user-gesture-required", "--disable-background-networking",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(executable_path=DRIVER))
    try:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.execute_cdp_cmd("Network.enable", {})
        conditions = {"offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        driver.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)
        yield driver
    finally:
        driver.quit()


def main() -> None:
    page, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for name, width in WIDTHS.items():
        with browser(width) as driver:
            driver.get(page.as_uri())
            driver.save_screenshot(str(folder / f"{name}.png"))
            driver.execute_script("document.getElementById('clips').scrollIntoView()")
            driver.save_screenshot(str(folder / f"{name}-clips.png"))
            print(f"{folder / name}.png, {folder / name}-clips.png")


if __name__ == "__main__":
    main()
