"""Take the README's pictures of the views, in a real JupyterLab, on what `make lab` made.

    python docs/screenshots.py                        # of runs/lab, into docs/
    python docs/screenshots.py runs/other --theme dark --out /tmp --only credit

It needs Chromium or Chrome, and the packages of the extra `test`.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from lab_browser import THEMES, Lab, Page, open_lab  # noqa: E402

START, GRPO, AR = "start", "GRPO", "AnytimeReasoner-uniform"
FOLDERS = {START: "evaluate_start", GRPO: "evaluate_grpo", AR: "evaluate_ar"}
SIZE = {"width": 1080, "height": 3000}  # the whole view is on the page, none of it scrolled away


def budget_curves(page: Page) -> None:
    """The budget at a third, where the runs differ."""
    for _ in range(3):
        page.line(0).press("ArrowLeft")


def inside_a_problem(page: Page) -> None:
    """A thinking whose answer was right, then lost, then right again; some way before its end."""
    page.wait(lambda: "flips" in page.text())
    for _ in range(100):
        if re.search(r"flips [2-5] times", page.text()):
            break
        said = page.text()
        page.select("Problem").press("ArrowDown")
        page.wait(lambda said=said: page.text() != said)
    for _ in range(5):
        page.line(0).press("ArrowLeft")


def answer_now(page: Page) -> None:
    """Asked thrice, and thinking on."""
    page.raw.get_by_role("button", name="Start", exact=True).click()
    for tokens in (15, 40, 70):
        page.wait(lambda tokens=tokens: _thought(page) >= tokens, 60)
        page.button("Answer now").click()
        page.wait(lambda: page.button("Think on").count(), 60)
        page.button("Think on").click()
    page.wait(lambda: _thought(page) >= 80 or page.button("Start again").count(), 60)
    if page.button("Answer now").count():
        page.button("Answer now").click()
        page.wait(lambda: page.button("Think on").count(), 60)


def as_it_opens(page: Page) -> None:
    """Nothing is pressed."""


# file -> notebook, what it reads, what is done with it
VIEWS: dict[str, tuple[str, str, Callable[[Page], None]]] = {
    "budget-curves": ("04_budget_curves", "evaluations", budget_curves),
    "inside-a-problem": ("06_inside_a_problem", "start and end", inside_a_problem),
    "policies": ("07_policies", "two evaluations", as_it_opens),
    "credit": ("08_credit", "trainings", as_it_opens),
    "training": ("09_training", "trainings", as_it_opens),
    "answer-now": ("10_answer_now", "", answer_now),
}


def _thought(page: Page) -> int:
    words = page.raw.get_by_text("thought, ").last.inner_text()
    return int(words.split()[0].replace(",", ""))


def read_runs(run: Path) -> dict[str, dict[str, str]]:
    """The folders of a lab by their names, as the notebooks take them."""
    made = {name: str(run / folder) for name, folder in FOLDERS.items()}
    return {
        "evaluations": made,
        "start and end": {name: made[name] for name in (START, AR)},
        "two evaluations": {name: made[name] for name in (AR, GRPO)},
        "trainings": {AR: str(run / "train_ar"), GRPO: str(run / "train_grpo")},
    }


def picture(lab: Lab, name: str, runs: dict, theme: str, out: Path) -> Path:
    """One view as a PNG."""
    notebook, reads, act = VIEWS[name]
    parameters = {"runs": runs[reads]} if reads else {}
    with lab.notebook(notebook, **parameters) as page:
        page.raw.set_viewport_size(SIZE)
        page.theme(theme)
        page.run_all(300)
        view = page.raw.locator(".jp-OutputArea-output > .widget-vbox").last
        view.wait_for()
        act(page)
        page.raw.wait_for_timeout(1500)  # plotly draws after it has told
        path = out / f"{name}.png"
        view.screenshot(path=str(path))
    return path


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description="Take the README's pictures of the views.")
    parser.add_argument("run", nargs="?", type=Path, default=HERE.parent / "runs" / "lab")
    parser.add_argument("--theme", choices=THEMES, default="light")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--only", choices=VIEWS, action="append")
    asked = parser.parse_args()
    runs = read_runs(asked.run.resolve())
    with tempfile.TemporaryDirectory() as home, open_lab(Path(home) / "home") as lab:
        for name in asked.only or VIEWS:
            path = picture(lab, name, runs, asked.theme, asked.out)
            print(f"wrote {path} ({path.stat().st_size / 1000:.0f} kB)", flush=True)


if __name__ == "__main__":
    main()
