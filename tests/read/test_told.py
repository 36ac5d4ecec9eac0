"""The table that a reader wants first, and what it says in words, against numbers by hand."""

import io
import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from made_runs import random_right, write_run
from rich.console import Console

from anytime_lab.read.curves import paired_differences, read_tables
from anytime_lab.read.told import (
    BENCHMARKS,
    DATASETS,
    PUBLISHED,
    published_table,
    summary_table,
    terminal_table,
    told_percent,
    told_points,
    verdicts,
)

LEADS = {"start": -0.2, "GRPO": 0.0, "AR": 0.2, "twin": 0.0}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {
        name: write_run(root / name, random_right(lead=lead, seed=i))
        for i, (name, lead) in enumerate(LEADS.items())
    }


def write_small(tmp_path):
    """Two problems, one sample, two budgets: a is (0, 1), (1, 1), b is (0, 0), (0, 1)."""
    told = {"a": [[0, 1], [1, 1]], "b": [[0, 0], [0, 1]]}
    return {
        name: write_run(tmp_path / name, np.array(r)[:, None, :, None], budgets=(8, 16))
        for name, r in told.items()
    }


def test_the_summary_worked_by_hand(tmp_path):
    told = summary_table(read_tables(write_small(tmp_path)), "b").set_index("run")
    assert told["anytime"].tolist() == [0.75, 0.25]
    assert told["final"].tolist() == [1.0, 0.5]
    assert told.loc["a", "anytime_difference"] == 0.5
    assert told.loc["a", "final_difference"] == 0.5
    # two problems say next to nothing (t_1 is 12.7), though their differences of the area agree
    for measure in ("anytime_difference", "final_difference"):
        low, high = told.loc["a", [f"{measure}_low", f"{measure}_high"]]
        assert low < 0 < 0.5 < high
    assert told.loc["b", "anytime_difference":].isna().all()
    assert told["thinking_length"].tolist() == [16, 16]
    alone = summary_table(read_tables({"a": tmp_path / "a"}), "a")
    assert "anytime_difference" not in alone


def test_numbers_are_told_in_percent_and_points():
    assert told_percent(0.712, 0.68, 0.7444) == "71.2\u00a0% [68.0,\u00a074.4]"
    assert told_percent(0.5, np.nan, np.nan) == "50.0\u00a0%"
    assert told_percent(np.nan, np.nan, np.nan) == "—"
    assert told_points(0.04, 0.012, 0.068) == "+4.0 [+1.2,\u00a0+6.8]"
    assert told_points(-0.04, -0.1, 0.02) == "−4.0 [−10.0,\u00a0+2.0]"
    assert told_points(0.0, 0.0, 0.0) == "0.0 [0.0,\u00a00.0]"
    assert told_points(-0.0002, -0.0004, 0.0004) == "0.0 [0.0,\u00a00.0]"


def test_verdicts_say_above_below_or_not_distinguishable(runs):
    tables = read_tables(runs)
    said = verdicts(paired_differences(tables, "GRPO"))
    assert said[0].startswith("start is below GRPO by")
    assert "below 0 at 4 of 4" in said[0]
    assert said[1].startswith("AR is above GRPO by")
    assert said[-1].startswith("twin is not distinguishable from GRPO")
    assert re.search(r"Final accuracy differs by \+\d+\.\d points \(\+\d", said[1])


def test_one_shared_problem_gives_no_verdict(tmp_path):
    one = {n: write_run(tmp_path / n, random_right(p=1, seed=i)) for i, n in enumerate("ab")}
    (said,) = verdicts(paired_differences(read_tables(one), "a"))
    assert "share one problem" in said and "nan" not in said


def test_the_terminal_table_fits_80_columns_and_shows_no_control(runs):
    tables = read_tables({"\x1b[31mred [bold]x[/bold]": runs["AR"], "AR-uniform": runs["GRPO"]})
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal_table(summary_table(tables, "AR-uniform"), "Result"))
    text = console.export_text()
    assert "\x1b" not in text and "bold" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_the_terminal_table_cuts_no_digit_off():
    value = {"run": "AnytimeReasoner-uniform", "n_problems": 840, "thinking_length": 15_678}
    for measure in ("anytime", "final"):
        value |= {measure: 1.0, f"{measure}_low": 1.0, f"{measure}_high": 1.0}
        name = f"{measure}_difference"
        value |= {name: -0.1615, f"{name}_low": -0.1766, f"{name}_high": -0.1464}
    table = terminal_table(pd.DataFrame([value]), "Result")
    shown = {}
    for width in (200, 80, 60):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(table)
        shown[width] = console.export_text()
        assert max(map(len, shown[width].splitlines())) <= width
    assert shown[80].split() == shown[200].split()
    assert {"15,678", "[100.0,100.0]", "[−17.7,−14.6]", "thinking"} <= set(shown[80].split())
    # in less than 80 columns folded, but whole
    assert Counter(re.sub(r"[\s─]", "", shown[60])) == Counter(re.sub(r"[\s─]", "", shown[80]))


def test_the_terminal_table_breaks_a_long_name_before_its_hyphen(runs):
    name = "AnytimeReasoner-uniform"
    console = Console(width=80, record=True, file=io.StringIO())
    tables = read_tables({"start": runs["start"], name: runs["AR"]})
    console.print(terminal_table(summary_table(tables, "start")))
    words = console.export_text().split()
    assert "AnytimeReasoner" in words and "-uniform" in words


def test_published_averages_are_the_means_of_their_rows():
    averages = {
        "R1-Distill-1.5B": (45.6, 39.8),
        "GRPO": (50.7, 43.0),
        "AR-base": (52.7, 44.9),
        "AR-linear": (52.6, 45.6),
        "AR-uniform": (52.5, 46.0),
    }
    for run, (final, anytime) in averages.items():
        assert np.mean(PUBLISHED[run][0]) == pytest.approx(final, abs=0.051)
        assert np.mean(PUBLISHED[run][1]) == pytest.approx(anytime, abs=0.051)


def test_the_published_table_answers_to_dataset_names():
    assert all(len(published_table(benchmark)) == 5 for benchmark in BENCHMARKS)
    aime = published_table("aime24").set_index("run")
    assert aime.loc["AR-uniform", "anytime"] == pytest.approx(0.229)
    assert (
        set(aime["benchmark"]) == {"AIME24"} == set(published_table(DATASETS["aime24"]).benchmark)
    )
    with pytest.raises(ValueError, match="countdown"):
        published_table("countdown")
