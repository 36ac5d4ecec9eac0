"""The budget curves as a page without its code, served by voila."""

import pytest
from lab_browser import free_port, server
from made_runs import random_right, write_run

pytestmark = pytest.mark.slow


def test_the_curves_are_read_on_a_page_of_voila(lab, tmp_path):
    pytest.importorskip("voila")
    for name, lead in (("grpo", 0), ("ar", 0.25)):
        write_run(tmp_path / name, random_right(lead=lead, s=1))
    runs = {name: str(tmp_path / name) for name in ("grpo", "ar")}
    notebook = lab.copy("04_budget_curves", runs=runs, reference="grpo")
    (tmp_path / "home").mkdir()
    url = f"http://127.0.0.1:{free_port()}"
    options = [
        "serve",
        str(notebook),
        "--no-browser",
        "--token=mine",
        f"--port={url.rpartition(':')[2]}",
        "--port_retries=0",
    ]
    with (
        server("anytime_lab", options, tmp_path / "home", f"{url}/voila/static/voila.js"),
        lab.page() as page,
    ):
        page.raw.goto(f"{url}/?token=mine", timeout=120_000)
        live = page.live(0)
        try:
            page.wait(lambda: page.line(0).count(), 40)
        except AssertionError as error:  # voila's page may miss its kernel's widgets: load it again
            assert "Loading widget" in str(error)
            page.raw.reload(timeout=120_000)
            page.wait(lambda: page.line(0).count(), 60)
        page.wait(lambda: len(live.data()) == 8, 60)
        page.wait(lambda: "at 24 tokens" in page.text())
        page.line(0).press("ArrowRight")
        page.wait(lambda: "at 32 tokens" in page.text())
        assert page.raw.locator(".js-plotly-plot:visible").count() == 1  # no picture beside it
        assert not page.problems, "\n".join(page.problems)
