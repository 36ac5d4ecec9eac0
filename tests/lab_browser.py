"""A real JupyterLab in a headless Chromium: what the browser tests drive.

One server and one browser serve all tests. A view is tested in a page of its own:

    @pytest.mark.slow
    def test_the_slider_moves_the_read_out(lab, runs):          # `lab` is in conftest.py
        with lab.notebook("04_budget_curves", runs=runs) as page:   # a copy, with parameters
            page.run_all()                                      # raises where a cell fails
            before = page.live(0).data()                       # traces as plotly holds them
            page.line(0).press("ArrowRight")                    # the line through a live figure
            page.slider("Ratio").press("ArrowRight")            # by the description of the control
            page.wait(lambda: "at 24 tokens" in page.text())
            page.button("CSV").click()
            page.select("Prior").select_option("base: the largest budget only")

On leaving the `with`, the kernel is shut down, the notebook is closed, and the page must have had
no page error, no console error and no request that leaves this machine; `page.problems` holds them.
`page.start()` runs all cells without waiting, `page.finish()` waits for them: between the two,
controls of a cell that is shown can be used while a later one runs. `page.live(0)` is the first
figure of the view. `page.theme("dark")` changes the colours, for pages opened later too: set
"light" again.

To add a view: write `tests/look/test_browser_VIEW.py` with `lab` as above and small made-up runs
(made_runs.py, session scope), mark it slow, and open a notebook once: that costs its kernel and
what it imports, a step on it nearly nothing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
from made_notebooks import NOTEBOOKS, with_parameters

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nothing can leave, even unseen
]
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},  # all cells are in the DOM
}
TOKEN = "local"
# what anywidget throws where a busy page loads a module late; our widgets hear their kernel all the
# same (heard.js; tests/look/test_browser_views.py)
LATE = "[anywidget] Failed to initialize model."
SIZE = {"width": 1280, "height": 900}
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}

OPEN = """async where => {
  const app = window.jupyterapp; await app.restored;
  const panel = await app.commands.execute('docmanager:open', {path: where, factory: 'Notebook'});
  await panel.revealed; await panel.sessionContext.ready;
  const kernel = panel.sessionContext.session.kernel; await kernel.info;
  while (kernel.connectionStatus !== 'connected' || kernel.status !== 'idle'
         || app.shell.currentWidget !== panel)
    await new Promise(r => setTimeout(r, 50));
  app.shell.collapseLeft(); app.shell.collapseRight?.(); }"""
CLOSE = """async () => {
  const panel = window.jupyterapp.shell.currentWidget, context = panel.context;
  await panel.sessionContext.shutdown();
  panel.dispose(); context.dispose(); }"""
START = """() => { const run = window.cellsRun = {done: false};
  window.jupyterapp.commands.execute('notebook:run-all-cells')
    .then(ok => { Object.assign(run, {done: true, ok}); },
          error => { Object.assign(run, {done: true, ok: false, error: String(error)}); }); }"""
ERRORS = """() => window.jupyterapp.shell.currentWidget.content.widgets
  .filter(cell => cell.model.type === 'code')
  .flatMap(cell => cell.model.outputs.toJSON())
  .filter(o => o.output_type === 'error').map(o => o.traceback.join('\\n'))"""
# what has the focus: its name for a screen reader, and whether it is seen to have it
FOCUSED = """() => {
  const e = document.activeElement, style = getComputedStyle(e);
  return {
    within: e.closest('.anytime-lab-view') !== null && !e.matches('.modebar-btn'),
    plotly: e.matches('.modebar-btn'),
    name: e.getAttribute('aria-label') || e.labels?.[0]?.innerText || e.innerText,
    seen: style.outlineStyle === 'solid' && parseFloat(style.outlineWidth) >= 2 }; }"""
# every number as a number, whatever array plotly keeps it in
DATA = """plot => plot._fullData.map(t => ({
  name: t.name, type: t.type, visible: t.visible, x: Array.from(t.x ?? []),
  y: Array.from(t.y ?? []), color: t.line?.color, dash: t.line?.dash, axis: t.xaxis}))"""
LAYOUT = "plot => JSON.parse(JSON.stringify(plot.layout))"


def find_browser() -> str | None:
    """The system's Chromium or Chrome; None if there is none."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def server(module: str, options: list[str], home: Path, url: str, seconds: float = 60) -> Iterator:
    """Runs `python -m MODULE OPTIONS` with Jupyter folders of its own until `url` answers.

    Raises:
        RuntimeError: it ended, or did not answer in time; with the end of its log.
    """
    folders = {
        "JUPYTER_CONFIG_DIR": home / "config",
        "JUPYTER_DATA_DIR": home / "data",
        "JUPYTER_RUNTIME_DIR": home / "runtime",
        "IPYTHONDIR": home / "ipython",
    }
    package = str(NOTEBOOKS.parent)
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {
        **os.environ,
        **{name: str(folder) for name, folder in folders.items()},
        "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's kernel, not one of the same name
        "PYTHONPATH": path,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    log = home / f"{module}.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *options],
            cwd=home,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            give_up = time.monotonic() + seconds
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > give_up:
                    raise RuntimeError(
                        f"{module} did not answer at {url}: {log.read_text()[-2000:]}"
                    )
                time.sleep(0.1)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


@contextmanager
def open_lab(home: Path) -> Iterator[Lab]:
    """Starts JupyterLab and a browser. home: an empty folder for all that they write.

    Raises:
        RuntimeError: no browser, or the server does not start.
    """
    from playwright.sync_api import sync_playwright

    if (executable := find_browser()) is None:
        raise RuntimeError(f"no browser: none of {', '.join(BROWSERS)} is on PATH; install one.")
    for name in ("root", "settings", "workspaces", "application"):
        (home / name).mkdir(parents=True)
    for plugin, values in SETTINGS.items():
        place = home / "settings" / f"{plugin.replace(':', '/')}.jupyterlab-settings"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(values))
    url = f"http://127.0.0.1:{free_port()}"
    options = [
        "--allow-root",
        "--no-browser",
        "--expose-app-in-browser",  # tests wait by window.jupyterapp, not by the clock
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={urlsplit(url).port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={home / 'root'}",
        f"--IdentityProvider.token={TOKEN}",
        f"--LabApp.user_settings_dir={home / 'settings'}",
        f"--LabApp.workspaces_dir={home / 'workspaces'}",
        "--LabApp.extension_manager=readonly",  # the default asks PyPI
    ]
    with (
        server("jupyterlab", options, home, f"{url}/api?token={TOKEN}"),
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        try:
            yield Lab(home, url, browser)
        finally:
            browser.close()


class Lab:
    """A running JupyterLab and the browser that looks at it."""

    def __init__(self, home: Path, url: str, browser: Any) -> None:
        self.home, self.url, self.browser = home, url, browser
        self._loaded: Page | None = None  # JupyterLab with no notebook open

    @contextmanager
    def notebook(self, name: str, **parameters: Any) -> Iterator[Page]:
        """Opens a copy of a notebook with these parameters; checks the page at the end.

        Raises:
            ValueError: the notebook has no such parameter.
            AssertionError: the page had errors, or asked for something from outside.
        """
        with self.opened(self.copy(name, **parameters)) as page:
            yield page

    @contextmanager
    def cells(self, *sources: str) -> Iterator[Page]:
        """Opens a notebook of these cells; checks the page at the end, as `notebook` does."""
        folder = Path(tempfile.mkdtemp(prefix="cells-", dir=self.home / "root"))
        made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
        made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(made, folder / "cells.ipynb")
        with self.opened(folder / "cells.ipynb") as page:
            yield page

    @contextmanager
    def opened(self, path: Path, checked: bool = True) -> Iterator[Page]:
        """Opens a notebook; unless it is told not to, checks the page at the end.

        JupyterLab is loaded once, and again after a notebook that failed or was not checked.
        """
        page, self._loaded = self._loaded or self._load(), None
        page.raw.set_viewport_size(SIZE)
        page.raw.evaluate(OPEN, path.relative_to(self.home / "root").as_posix())
        try:
            yield page
        finally:
            page.raw.evaluate(CLOSE)
        if not checked:
            page.raw.context.close()
            return
        assert not page.problems, "\n".join(page.problems)
        self._loaded = page

    def _load(self) -> Page:
        page = Page(self, self.browser.new_context(viewport=SIZE))
        page.raw.goto(f"{self.url}/lab?reset&token={TOKEN}")
        page.raw.wait_for_function("window.jupyterapp !== undefined")
        return page

    def copy(self, name: str, **parameters: Any) -> Path:
        """A copy of a notebook, in a folder of its own, with these parameters set."""
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.home / "root"))
        nbformat.write(with_parameters(name, parameters), folder / f"{name}.ipynb")
        return folder / f"{name}.ipynb"

    @contextmanager
    def page(self) -> Iterator[Page]:
        context = self.browser.new_context(viewport=SIZE)
        try:
            yield Page(self, context)
        finally:
            context.close()


class Page:
    """An open notebook. raw: Playwright's page, for whatever is not here.

    problems: page errors, console errors and requests that leave this machine.
    """

    def __init__(self, lab: Lab, context: Any) -> None:
        self.lab, self.raw = lab, context.new_page()
        self.problems: list[str] = []
        self.raw.on("pageerror", self._error)
        self.raw.on("console", self._console)
        self.raw.on("request", lambda request: self._asked(request.url))
        self.raw.on("websocket", lambda socket: self._asked(socket.url))

    def _error(self, error: Any) -> None:
        if LATE not in str(error):
            self.problems.append(f"page error: {error}")

    def _console(self, message: Any) -> None:
        if message.type == "error":
            self.problems.append(f"console: {message.text} ({message.location.get('url', '')})")

    def _asked(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1":
            self.problems.append(f"request to the outside: {url[:300]}")

    # --- running ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Runs all cells and does not wait for them."""
        self.raw.evaluate(START)

    def finish(self, seconds: float = 120) -> None:
        """Waits until all cells have run.

        Raises:
            AssertionError: a cell failed; with its traceback.
        """
        self.raw.wait_for_function("window.cellsRun.done", timeout=1000 * seconds)
        errors = self.raw.evaluate(ERRORS)
        ran = self.raw.evaluate("window.cellsRun")
        assert ran["ok"] and not errors, "\n".join(errors) or str(ran)

    def run_all(self, seconds: float = 120) -> None:
        """Runs all cells to their end."""
        self.start()
        self.finish(seconds)

    def wait(self, holds: Callable[[], Any], seconds: float = 20) -> Any:
        """Waits until `holds()` is true and returns what it gave.

        Raises:
            AssertionError: it never was.
        """
        give_up = time.monotonic() + seconds
        while not (found := holds()):
            if time.monotonic() > give_up:
                wrong = "\n".join(self.problems) or "nothing that a page tells of"
                raise AssertionError(
                    f"not so within {seconds} s; the page says: {self.text()}\nwrong: {wrong}"
                )
            self.raw.wait_for_timeout(50)  # lets the page's events in
        return found

    def theme(self, name: str) -> None:
        """Shows JupyterLab "light" or "dark"; it stays so for pages opened later."""
        change = (
            "name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})"
        )
        self.raw.evaluate(change, THEMES[name])
        light = "true" if name == "light" else "false"
        self.raw.wait_for_selector(f'body[data-jp-theme-light="{light}"]', state="attached")

    # --- what is on it ---------------------------------------------------------------------------

    def text(self) -> str:
        """What the reader sees in the outputs."""
        shown = self.raw.locator(".jp-OutputArea-output").all_inner_texts()
        return "\n".join(shown)

    def live(self, index: int = 0) -> Plot:
        """A live figure of a view by its place among those; drawn or not, its place stays."""
        box = self.raw.locator(".anytime-lab-figure").nth(index)
        return Plot(self, box.locator(".js-plotly-plot"))

    def line(self, index: int = 0) -> Any:
        """The line through a live figure, a slider: press keys on it."""
        return self.raw.locator(".anytime-lab-figure").nth(index).locator(".budget-line")

    def control(self, label: str) -> Any:
        """The widget with this description."""
        whole = re.compile(rf"^\s*{re.escape(label)}\s*$")  # "Budget" is not "Weight at budget"
        return self.raw.locator(".widget-label").filter(has_text=whole).last.locator("xpath=..")

    def slider(self, label: str) -> Any:
        """The handle of a slider: press keys on it, or drag it."""
        return self.control(label).locator(".noUi-handle")

    def tabbed(self) -> list[str]:
        """The names of all that Tab goes through in the last view, without plotly's own buttons.

        Raises:
            AssertionError: something has the focus and does not show it.
        """
        view = self.raw.locator(".anytime-lab-view").last
        view.locator(
            ":is(select, input, button:not(.modebar-btn), .budget-line):visible"
        ).first.focus()
        self.raw.keyboard.press("Tab")  # focus by key is shown, by a script perhaps not
        self.raw.keyboard.press("Shift+Tab")
        names = []
        while (at := self.raw.evaluate(FOCUSED))["within"] or at["plotly"]:
            assert at["seen"] or at["plotly"], f"no focus is seen on {at['name']!r}"
            names += [at["name"].strip()] if at["within"] else []
            self.raw.keyboard.press("Tab")
            assert len(names) < 60, names
        return names

    def select(self, label: str) -> Any:
        """The menu or list with this description."""
        return self.control(label).locator("select")

    def button(self, text: str) -> Any:
        """The button that says this."""
        return self.raw.locator("button.jupyter-button").filter(has_text=text)


class Plot:
    """A plotly figure on a page."""

    def __init__(self, page: Page, element: Any) -> None:
        self.page, self.element = page, element

    def data(self) -> list[dict]:
        """Its traces: name, type, visible, x, y, colour, dash and x axis."""
        self.element.wait_for(state="attached", timeout=90_000)  # a busy machine draws late
        return self.element.evaluate(DATA)

    def trace(self, name: str) -> dict:
        """The visible trace of this name.

        Raises:
            AssertionError: there is not exactly one.
        """
        data = self.data()
        found = [t for t in data if t["name"] == name and t["visible"] is True]
        assert len(found) == 1, f"{len(found)} traces {name!r}; {[t['name'] for t in data]}"
        return found[0]

    def layout(self) -> dict:
        """Its layout as JSON."""
        return self.element.evaluate(LAYOUT)

    def hover(self, trace: int = 0, point: int = 0) -> str:
        """Puts the pointer on a point, counting traces with markers; returns what is said there."""
        marked = self.element.locator(".scatterlayer .trace").filter(
            has=self.page.raw.locator(".point")
        )
        mark = marked.nth(trace).locator(".point").nth(point)
        mark.scroll_into_view_if_needed()
        box = mark.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.raw.mouse.move(x - 20, y)
        self.page.raw.mouse.move(x, y, steps=4)
        told = self.element.locator(".hoverlayer text")
        self.page.wait(lambda: told.count() and told.last.text_content())
        return " ".join(told.all_text_contents())

    def draw(self, points: list[tuple[float, float]], panel: int = 0) -> None:
        """Drags the mouse through a panel of it; points are shares of the panel, from its lower
        left corner."""
        area = self.element.locator(".nsewdrag").nth(panel)
        area.scroll_into_view_if_needed()
        box = area.bounding_box()
        at = [(box["x"] + u * box["width"], box["y"] + (1 - v) * box["height"]) for u, v in points]
        self.page.raw.mouse.move(*at[0])
        self.page.raw.mouse.down()
        for place in at[1:]:
            self.page.raw.mouse.move(*place, steps=10)
        self.page.raw.mouse.up()

    def screenshot(self, path: Path) -> None:
        """Writes a PNG of the figure alone."""
        self.element.scroll_into_view_if_needed()
        self.element.screenshot(path=str(path))
