"""The views of training in JupyterLab: credit from kept rollouts, and runs that are still going."""

import pytest
from made_runs import write_tree

from anytime_lab.store.files import METRICS, append_jsonl, write_progress

pytestmark = pytest.mark.slow

HOSTILE = "<img src=x onerror=\"document.title='owned'\"></script> $$x$$ \x1b[31m\u202e"
LATER = (1.0, 0.5, 0.0), (0.5, 0.5, 0.5)


def test_credit_is_read_by_budget_method_and_thinking(lab, tmp_path):
    write_tree(tmp_path / "plain", 5)
    write_tree(tmp_path / "plain", 10, scores=LATER)
    write_tree(tmp_path / "hostile", 5, text=HOSTILE * 3)
    runs = {"plain": str(tmp_path / "plain"), HOSTILE: str(tmp_path / "hostile")}
    with lab.notebook("08_credit", runs=runs) as page:
        page.run_all()
        tree, live = page.live(0), page.live(1)
        page.wait(lambda: len(live.data()) == 6)
        # the last update first; R by the prior .2, .3, .5
        assert live.trace("return R")["y"] == pytest.approx([0.35, 0.15, 0.0])
        assert "At 4 tokens" in page.text()
        names = page.tabbed()
        assert names[:7] == ["Run", "Update", "10", "Problem", "Compare", "with", "Thinking"]
        assert [name.split(":")[0] for name in names[7:]] == [
            *("Budget", "BRPO", "GRPO (final score only)", "Budget"),
            *("All numbers", "The prompt, as the model was given it"),
        ]
        line = page.raw.locator(".budget-line").nth(1)
        line.press("ArrowRight")
        page.wait(lambda: "At 8 tokens" in page.text())
        assert line.get_attribute("aria-valuetext").startswith("8 tokens; return R 0.15")
        first = page.raw.locator(".budget-line").first  # it follows
        page.wait(lambda: first.get_attribute("aria-valuetext") == "8 tokens")
        page.slider("Update").press("ArrowLeft")
        page.wait(lambda: live.trace("return R")["y"] == pytest.approx([0.65, 0.65, 0.5]))
        page.select("Compare").select_option("no baseline")
        page.wait(lambda: live.data()[4]["name"] == "advantage, no baseline")
        assert live.data()[4]["y"] == pytest.approx([0.65, 0.65, 0.5, 0.5])  # R itself
        assert "no baseline: advantage of the thinking's tokens" in page.text()
        assert [t["name"] for t in tree.data()][0] == "no baseline"
        page.select("Thinking").press("ArrowDown")  # which JupyterLab would take for a cell's
        page.wait(lambda: live.trace("return R")["y"] == pytest.approx([0.25, 0.25, 0.25]))
        assert "V1" in live.hover(trace=1, point=2)
        assert "What is 1?" in page.text() and "<details" not in page.text()

        page.select("Run").select_option(index=1)
        page.wait(lambda: "<img src=x onerror=" in page.text())
        assert page.raw.locator("img[src=x]").count() == 0
        assert "owned" not in page.raw.title()


def write_step(folder, step, lift=0.0):
    line = {
        "step": step,
        "anytime_accuracy": 0.4 + 0.1 * step + lift,
        "final_accuracy": 0.5 + 0.1 * step + lift,
        "thinking/length": 90.0 - step,
        "score/24": 0.4 + lift,
        "score/48": 0.5 + lift,
        "seconds": 10.0 * step,
    }
    append_jsonl(folder / METRICS, line)
    write_progress(folder, "train", step, 4, "updates", started=0.0)


def test_runs_are_followed_and_chosen(lab, tmp_path):
    for step in (1, 2, 3, 4):
        write_step(tmp_path / "done", step)
    write_step(tmp_path / "going", 1, lift=0.05)
    runs = {name: str(tmp_path / name) for name in ("done", "going")}
    with lab.notebook("09_training", runs=runs, window=1, seconds=0.2) as page:
        page.run_all()
        live = page.live(0)

        def strong(name, axis="x"):
            """x and y of the running mean of a run in a panel; None while it is not drawn."""
            found = [t for t in live.data() if (t["name"], t["axis"]) == (name, axis)]
            return found[0] if found else {"x": None, "y": None}

        page.wait(lambda: strong("done")["x"] == [1, 2, 3, 4])
        assert strong("done")["y"] == pytest.approx([0.5, 0.6, 0.7, 0.8])
        assert strong("done", "x4")["x"] == [24, 48]
        assert "No variance to show" in page.text()
        assert page.tabbed() == ["Follow", "Over", "Mean of updates", "Runs", "Run in detail"]
        page.wait(lambda: strong("going")["x"] == [1])
        write_step(tmp_path / "going", 2, lift=0.05)
        page.wait(lambda: strong("going")["x"] == [1, 2])
        page.wait(lambda: "2 of 4" in page.text())

        page.button("Follow").click()
        page.raw.wait_for_timeout(500)
        write_step(tmp_path / "going", 3, lift=0.05)
        page.raw.wait_for_timeout(800)
        assert strong("going")["x"] == [1, 2]
        page.button("Follow").press("Enter")
        page.wait(lambda: strong("going")["x"] == [1, 2, 3])
        write_step(tmp_path / "going", 4, lift=0.05)
        page.wait(lambda: page.text().count("4 of 4, finished") == 2)
        page.wait(lambda: page.raw.locator("button.mod-active").count() == 0)

        page.select("Over").select_option("seconds")
        page.wait(lambda: strong("going")["x"] == [10, 20, 30, 40])
        page.select("Run in detail").select_option("going")
        page.wait(lambda: strong("24 tokens", "x5")["y"] == pytest.approx([0.45] * 4))
        page.select("Runs").select_option(["going"])
        page.wait(lambda: strong("done")["x"] is None)
