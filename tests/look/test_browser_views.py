"""The views of curves, of one problem and of rules, used as a reader does, in JupyterLab."""

import re
from pathlib import Path

import pytest
from made_runs import random_right, write_run

pytestmark = pytest.mark.slow

HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>"
    " $$\\frac{1}{0}$$ \x1b[31mred \u202eright to left "
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of which the second is better."""
    folder = tmp_path_factory.mktemp("runs")
    made = {"grpo": (0, 1), "ar": (0.25, 2)}
    for name, (lead, seed) in made.items():
        write_run(folder / name, random_right(seed=seed, lead=lead, s=1))
    return {name: str(folder / name) for name in made}


def anytime(page, run):
    """The anytime score of a run in the view's table, as it is told."""
    rows = page.raw.locator(".anytime-lab .score tr").all_inner_texts()
    return next((row.split("\t")[1] for row in rows if row.startswith(run + "\t")), "")


def test_budget_curves_are_read_dragged_hovered_reweighted_and_exported(lab, runs, tmp_path):
    with lab.notebook("04_budget_curves", runs=runs, reference="grpo") as page:
        page.run_all()
        live, line = page.live(0), page.line(0)
        page.wait(lambda: len(live.data()) == 8)
        page.wait(lambda: page.raw.locator(".jp-RenderedPlotly").first.is_hidden())  # the picture
        assert "ar is above grpo at" in page.text() and "at 24 tokens" in page.text()
        assert page.tabbed() == [
            *("Thinking budget", "show grpo", "compare with grpo", "show ar"),
            *("Problems behind the line", "Prior", "More"),
        ]
        line.press("ArrowRight")
        page.wait(lambda: "at 32 tokens" in page.text())
        told = line.get_attribute("aria-valuetext")
        assert re.match(r"32 tokens; grpo \d+\.\d %; ar \d+\.\d %; ar \+\d", told)
        assert page.raw.locator(".riding span").count() == 3
        live.draw([(0.9, 0.5), (0.01, 0.5)])
        page.wait(lambda: "at 8 tokens" in page.text())
        assert line.get_attribute("aria-valuenow") == "0"
        assert re.search(r"ar.*%", live.hover(trace=1, point=1))

        uniform = anytime(page, "ar")
        page.select("Prior").select_option("base: the largest budget only")
        page.wait(lambda: anytime(page, "ar") != uniform)
        base = anytime(page, "ar")
        live.draw([(0.0, 0.9), (0.99, 0.1)], panel=2)
        page.wait(lambda: page.select("Prior").input_value().startswith("by hand"))
        page.wait(lambda: sum(live.trace("prior")["y"][1::3]) == pytest.approx(1))
        weights = live.trace("prior")["y"][1::3]
        assert weights == sorted(weights, reverse=True)
        page.wait(lambda: anytime(page, "ar") not in (uniform, base))
        assert page.slider("Weight of 8").count() == 1  # the same by key

        point = live.element.locator(".scatterlayer .trace").nth(3).locator(".point").nth(2)
        point.click(force=True)  # plotly lays what hears the mouse over all of it
        page.wait(lambda: page.raw.locator(".model").count() == 3)
        assert "At 24 tokens" in page.text() and not page.raw.get_by_label("show ar").count()
        page.button("Back to the runs").click()
        page.button("More").click()
        folder = page.control("Export to folder").locator("input")
        folder.fill(str(tmp_path))
        folder.press("Enter")
        for kind, words in (
            ("HTML", "html"),
            ("CSV", "csv"),
            ("LaTeX", "tex"),
            ("PNG", "png"),
            ("SVG", "svg"),
        ):
            page.select("as").select_option(kind)
            page.button("Export").click()
            page.wait(lambda words=words: f"budget-curves.{words}" in page.text(), 60)
        assert (tmp_path / "budget-curves.csv").read_text().startswith("run,dataset,step,budget")
        assert (tmp_path / "budget-curves.png").read_bytes().startswith(b"\x89PNG")

        page.slider("Tokens to accuracy").press("ArrowRight")
        page.wait(lambda: "To 51%:" in page.text())
        page.raw.get_by_label("Logarithmic axis").check()
        page.wait(lambda: live.layout()["xaxis"]["type"] == "log")
        page.raw.get_by_label("Logarithmic axis").uncheck()
        page.select("Published values (BRPO)").select_option("AIME24")
        page.wait(lambda: "32.7 %" in page.text() and "as pictures only" in page.text())
        page.wait(lambda: any(t["name"] == "AR-base (published)" for t in live.data()))
        assert live.trace("AR-base (published)")["y"] == pytest.approx([0.327])
        page.select("Published values (BRPO)").select_option("none")
        page.wait(lambda: len(live.data()) == 8)

        page.raw.get_by_label("show grpo").uncheck()
        page.wait(lambda: [t["name"] for t in live.data()] == ["ar 95 %", "ar", "prior"])
        page.wait(lambda: "1 of 2 runs are shown" in page.text())


def sticking_out(page):
    """Boxes of what is seen of the view, and is not within it."""
    view = page.raw.locator(".anytime-lab-view").first.bounding_box()
    parts = page.raw.locator(".anytime-lab-view :is(table, select, button, svg)").all()
    boxes = [part.bounding_box() for part in parts if part.is_visible()]
    assert boxes, "nothing is seen"
    left, right = view["x"] - 1, view["x"] + view["width"] + 2
    return [box for box in boxes if box["x"] < left or box["x"] + box["width"] > right]


THINKING = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from made_thoughts import Scripted, Thinks
from anytime_lab.look.answer_view import AnswerNow
from anytime_lab.verify.verifiers import ExactVerifier
thinker = Thinks(lambda: Scripted(["one ", "two ", "three"]))
AnswerNow(thinker, [{{"prompt": "so?", "answer": "7"}}], ExactVerifier(), rate=0)
"""


def test_views_on_a_page_too_busy_to_load_them_in_time_are_whole(lab, runs):
    # anywidget waits 2 s for a module; here none of that, so that each is late
    late = """() => { const real = AbortSignal.timeout; AbortSignal.timeout = () => {
      const now = new AbortController(); Promise.resolve().then(() => now.abort());
      return now.signal; }; window.inTime = () => { AbortSignal.timeout = real; }; }"""
    import_view = "from anytime_lab.look.curves_view import BudgetCurves"
    with lab.cells(f"{import_view}\nview = BudgetCurves({runs!r})\nview", THINKING) as page:
        page.raw.evaluate(late)
        try:
            page.run_all()
            page.raw.get_by_role("button", name="Start", exact=True).click()
            pane = page.raw.locator(".stream")
            page.wait(lambda: "one two three" in pane.inner_text())
            assert "Space or Enter" in pane.get_attribute("aria-label")
            live = page.live(0)
            page.wait(lambda: len(live.data()) == 8)
            before = live.trace("prior")["y"]
            page.select("Prior").select_option("base: the largest budget only")
            page.wait(lambda: live.trace("prior")["y"] != before)
            page.raw.get_by_label("show ar").uncheck()
            page.wait(lambda: len(live.data()) < 8)
            page.line(0).press("ArrowRight")
            page.wait(lambda: "at 32 tokens" in page.text())
        finally:
            page.raw.evaluate("window.inTime()")


def test_a_saved_notebook_fits_a_screen_and_opens_with_its_picture_and_no_lost_view(lab, runs):
    path = lab.copy("04_budget_curves", runs=runs, reference="grpo")
    with lab.opened(path) as page:
        page.raw.set_viewport_size({"width": 900, "height": 800})
        page.run_all()
        page.wait(lambda: page.raw.locator(".riding span").count() == 3)
        page.wait(lambda: page.live(0).data())
        assert sticking_out(page) == []
        page.raw.set_viewport_size({"width": 1280, "height": 800})
        view = page.raw.locator(".anytime-lab-view").first
        page.wait(lambda: view.bounding_box()["height"] <= 690)  # what JupyterLab leaves of 800
        page.wait(lambda: sticking_out(page) == [])
        page.raw.keyboard.press("Control+s")
        page.wait(lambda: "image/png" in path.read_text())
    assert path.stat().st_size < 300_000
    with lab.opened(path, checked=False) as page:
        lost = page.raw.get_by_text("model not found")
        page.wait(lost.count)
        assert page.raw.locator(".jp-RenderedPlotly").is_visible()
        assert lost.evaluate("(node) => getComputedStyle(node).fontSize") == "0px"
        told = lost.evaluate("(node) => getComputedStyle(node, '::after').content")
        assert "run the cell to use it" in told


def test_steps_and_data_sets_are_chosen(lab, tmp_path):
    made = {"ar/step-10": (0, "countdown"), "ar/step-20": (1, "countdown")}
    made |= {"ar/other/step-20": (2, "math500"), "grpo/step-20": (3, "countdown")}
    right = {}
    for place, (seed, dataset) in made.items():
        budgets = (8, 16, 24, 32) if dataset == "countdown" else (16, 64)
        right[place] = random_right(p=9, s=1, seed=seed, budgets=len(budgets))
        write_run(tmp_path / place, right[place], budgets, dataset)

    def curve(place):
        return pytest.approx(right[place].mean((0, 1, 3)))

    import_view = "from anytime_lab.look.curves_view import BudgetCurves"
    with lab.cells(f"{import_view}\nBudgetCurves({str(tmp_path)!r})") as page:
        page.run_all()
        live = page.live(0)

        def shown():
            kept = [t for t in live.data() if not t["name"].endswith(("95 %", "at all budgets"))]
            return {t["name"]: t["y"] for t in kept[: len(kept) // 2 or 1] if t["name"] != "prior"}

        page.select("Dataset").select_option("countdown")
        page.wait(lambda: shown().keys() == {"ar · step 20 · countdown", "grpo · countdown"})
        page.raw.get_by_label("show ar · step 10").check()
        page.wait(lambda: len(shown()) == 3)
        assert shown()["ar · step 10 · countdown"] == curve("ar/step-10")
        assert shown()["ar · step 20 · countdown"] == curve("ar/step-20")
        page.line(0).press("End")
        page.wait(lambda: "at 32 tokens" in page.text())
        page.select("Dataset").select_option("math500")
        page.wait(lambda: shown().keys() == {"ar · math500"} and "at 64 tokens" in page.text())
        assert shown()["ar · math500"] == curve("ar/other/step-20")
        assert page.tabbed()[:3] == ["Thinking budget", "Dataset", "show ar · math500"]


def test_a_thinking_is_read_up_to_the_budget_and_hostile_text_stays_text(lab, tmp_path):
    right = random_right(p=3, s=1)
    write_run(tmp_path / "a", right, thinking=HOSTILE * 9, question=HOSTILE, summary_text=HOSTILE)
    write_run(tmp_path / "b", 1 - right, thinking=HOSTILE, question=HOSTILE)
    runs = {HOSTILE: str(tmp_path / "a"), "b": str(tmp_path / "b")}
    with lab.notebook("06_inside_a_problem", runs=runs) as page:
        page.run_all()
        live = page.live(0)
        page.wait(lambda: live.data())
        page.wait(lambda: "At 24 tokens" in page.text())
        assert [re.sub(r"sample \d", "sample 0", name) for name in page.tabbed()] == [
            *("Run A", "Run B", "Order", "only where they disagree"),
            *("Play the budgets", "Problem", "question"),
            *("Thinking budget", "Sample of A", "thinking of sample 0, strong up to 24 tokens"),
            "Summaries at 24 tokens",
            *("Sample of B", "thinking of sample 0, strong up to 24 tokens"),
            "Summaries at 24 tokens",
        ]
        kept = page.raw.locator(".model .kept").first
        before = len(kept.text_content())
        page.line(0).press("ArrowLeft")
        page.wait(lambda: "At 16 tokens" in page.text())
        page.wait(lambda: 0 < len(kept.text_content()) < before)
        page.button("Play the budgets").click()
        page.wait(lambda: "At 32 tokens" in page.text())
        assert "<img src=x onerror=" in page.text() and "</script>" in page.text()
        assert page.raw.locator("img[src=x]").count() == 0
        assert "owned" not in page.raw.title()


def test_a_rule_is_read_at_another_setting(lab, runs):
    with lab.notebook("07_policies", runs=runs) as page:
        page.run_all()
        live = page.live(0)
        page.wait(lambda: len(live.data()) > 2)
        assert page.tabbed() == [
            *("Run", "Count", "Confidence: probability", "Logarithmic token axis"),
            *("Also what costs more than the largest budget", "Rule and setting"),
            *("Calibration at", "all budgets"),
        ]
        said, line = page.text(), page.line(0)
        assert line.get_attribute("aria-valuetext").startswith("2 budgets agree; ")
        line.press("ArrowRight")
        page.wait(lambda: line.get_attribute("aria-valuetext").startswith("3 budgets agree; "))
        page.wait(lambda: page.text() != said)
        assert re.search(r"%", live.hover(trace=1, point=0))


def test_a_training_is_watched_in_the_notebook_that_runs_it(lab, tmp_path):
    settings = {"max_steps": 1, "problems_per_step": 1, "rows_per_batch": 8}
    with lab.notebook("02_train", output_dir=str(tmp_path / "out"), **settings) as page:
        page.run_all(240)
        page.wait(lambda: "1 of 1, finished" in page.text())
        assert page.raw.locator(".js-plotly-plot").count() >= 1
    assert any((tmp_path / "out").rglob("*.safetensors"))
