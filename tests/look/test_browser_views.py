"""The views of curves, of one problem and of rules, used as a reader does, in JupyterLab."""

import re

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
    rows = page.raw.locator(".anytime-lab tr").all_inner_texts()
    found = [row.split("\t") for row in rows if row.startswith(run + "\t")]
    return found[-1][3] if found else ""


def test_budget_curves_are_slid_hovered_reweighted_and_exported(lab, runs, tmp_path):
    with lab.notebook("04_budget_curves", runs=runs, reference="grpo") as page:
        page.run_all()
        live = page.live(0)
        page.wait(lambda: len(live.data()) == 4)
        static = page.plot(0)
        assert live.trace("ar")["y"] == pytest.approx(static.trace("ar")["y"])
        assert "at 24 tokens" in page.text()
        assert page.tabbed() == [
            *("Runs", "Reference", "Read the folders again"),
            *("Budget", "24 tokens", "Logarithmic budget axis", "Tokens to accuracy", "50%"),
            *("Published values (BRPO)", "Prior", "Weight at budget", "Relative weight", "1.00"),
            *("Export to folder", "HTML", "PNG", "SVG", "CSV", "LaTeX"),
            *("Look inside", "Problems behind this point"),
        ]
        page.slider("Budget").press("ArrowRight")
        page.wait(lambda: "at 32 tokens" in page.text())
        page.wait(lambda: live.layout()["shapes"][0]["x0"] == 32)
        page.drag("Budget", -500)
        page.wait(lambda: "at 8 tokens" in page.text())
        page.wait(lambda: live.layout()["shapes"][0]["x0"] == 8)
        assert re.search(r"ar.*%", live.hover(trace=1, point=1))

        uniform = anytime(page, "ar")
        page.select("Prior").select_option("base: the largest budget only")
        page.wait(lambda: anytime(page, "ar") != uniform)
        base = anytime(page, "ar")
        prior = page.live(1)
        prior.draw([(0.02, 0.9), (0.98, 0.1)])
        page.wait(lambda: "Prior by hand" in page.text())
        weights = page.wait(lambda: prior.data()[0]["y"])
        assert weights == sorted(weights, reverse=True) and sum(weights) == pytest.approx(1)
        page.wait(lambda: anytime(page, "ar") not in (uniform, base))

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
            page.button(kind).click()
            page.wait(lambda words=words: f"budget-curves.{words}" in page.text(), 60)
        assert (tmp_path / "budget-curves.csv").read_text().startswith("run,dataset,step,budget")
        assert (tmp_path / "budget-curves.png").read_bytes().startswith(b"\x89PNG")

        before = page.text()
        page.slider("Tokens to accuracy").press("ArrowRight")
        page.wait(lambda: "tokens to 51%" in page.text() and page.text() != before)
        page.raw.get_by_label("Logarithmic budget axis").check()
        page.wait(lambda: live.layout()["xaxis"]["type"] == "log")
        page.raw.get_by_label("Logarithmic budget axis").uncheck()
        page.select("Published values (BRPO)").select_option("AIME24")
        page.wait(lambda: "32.7 %" in page.text() and "as pictures only" in page.text())
        assert live.trace("AR-base (published)")["y"] == pytest.approx([0.327])
        assert live.trace("AR-base (published), anytime")["y"] == pytest.approx([0.219] * 2)
        page.select("Published values (BRPO)").select_option("none")
        page.wait(lambda: len([t for t in live.data() if t["visible"]]) == 4)

        page.select("Runs").select_option(["ar"])
        page.wait(lambda: [t["name"] for t in live.data() if t["visible"]] == ["ar 95 %", "ar"])
        page.wait(lambda: "1 of 2 runs are shown" in page.text())


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
            traces = [t for t in live.data() if t["visible"] and not t["name"].endswith("95 %")]
            return {t["name"]: t["y"] for t in traces}

        page.select("Dataset").select_option("countdown")
        page.wait(lambda: shown().keys() == {"ar · step 20", "grpo"})  # the last step of each
        page.select("Steps").select_option(["step 10", "step 20"])
        page.wait(lambda: shown().keys() == {"ar · step 10", "ar · step 20", "grpo"})
        assert shown()["ar · step 10"] == curve("ar/step-10")
        assert shown()["ar · step 20"] == curve("ar/step-20")
        page.select("Steps").select_option(["step 10"])
        page.wait(lambda: shown().keys() == {"ar · step 10"})
        page.slider("Budget").press("End")
        page.wait(lambda: "at 32 tokens" in page.text())
        page.select("Dataset").select_option("math500")
        page.wait(lambda: shown().keys() == {"ar"} and "at 64 tokens" in page.text())
        assert shown()["ar"] == curve("ar/other/step-20")
        assert not page.select("Steps").is_visible()
        assert page.tabbed()[:4] == ["Dataset", "Runs", "Reference", "Read the folders again"]


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
        assert page.tabbed() == [
            *(
                "Run A",
                "Run B",
                "Problems at budget",
                "Order",
                "Problem",
                "Sample of A",
                "question",
            ),
            *("Budget", "24 tokens", "Play or pause", "Back to the beginning", "Repeat"),
            "thinking of sample 0, strong up to 24 tokens",
        ]
        kept = page.raw.locator(".model .kept").last
        before = len(kept.text_content())
        page.slider("Budget").press("ArrowLeft")
        page.wait(lambda: "At 16 tokens" in page.text())
        page.wait(lambda: live.layout()["shapes"][0]["x0"] == 16)
        assert 0 < len(kept.text_content()) < before
        page.raw.locator(".widget-play button").first.click()
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
            *("Rule and setting", "2 budgets agree", "Calibration at", "all budgets"),
        ]
        ring = live.trace("chosen setting")
        said = page.text()
        page.slider("Rule and setting").press("ArrowRight")
        page.wait(lambda: live.trace("chosen setting")["x"] != ring["x"])
        page.wait(lambda: page.text() != said)
        assert re.search(r"%", live.hover(trace=1, point=0))


def test_a_training_is_watched_in_the_notebook_that_runs_it(lab, tmp_path):
    settings = {"max_steps": 1, "problems_per_step": 1, "rows_per_batch": 8}
    with lab.notebook("02_train", output_dir=str(tmp_path / "out"), **settings) as page:
        page.run_all(240)
        page.wait(lambda: "1 of 1, finished" in page.text())
        assert page.raw.locator(".js-plotly-plot").count() >= 1
    assert any((tmp_path / "out").rglob("*.safetensors"))
