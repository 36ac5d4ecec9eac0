"""The page: what it says, that hostile text stays text, that it loads nothing from anywhere."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from made_runs import BUDGETS, random_right, write_run

from anytime_lab.look.report import write_report
from anytime_lab.read.curves import mean_interval, paired_differences, read_tables
from anytime_lab.read.told import summary_table, told_table
from anytime_lab.store.files import RunFolderError, append_jsonl, read_json, write_json
from anytime_lab.store.records import part_path

HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Tags, attributes, visible text, tables and figures of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.words, self.tables, self.figures = [], [], [], [], []
        self._inside, self._cell = None, False
        self.feed(path.read_text())
        self.text = " ".join("".join(self.words).replace("\u00a0", " ").split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag in ("script", "style"):
            self._inside = dict(attrs).get("class") or tag
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._inside = None
        elif tag in ("th", "td"):
            self._cell = False
        self.words.append(" ")

    def handle_data(self, data):
        if self._inside == "figure-data":
            self.figures.append(json.loads(data))
        elif self._inside is None:
            self.words.append(data)
            if self._cell:
                self.tables[-1][-1][-1] += data.replace("\u00a0", " ")


def write_full(folder, right, model="", dataset="d" * 64, **options):
    """A run folder with the whole manifest that an evaluation writes."""
    write_run(folder, right, **options)
    manifest = read_json(folder / "manifest.json")
    manifest["dataset"] |= {"problems": len(right), "card": "Generated from seed 1."}
    manifest["model_path"] = model
    manifest["settings"] = {
        "budgets": list(BUDGETS),
        "num_samples": 4,
        "num_summaries": 2,
        "sampling": {"temperature": 1.0},
        "seed": 0,
        "dataset": dataset,
        "model": "e" * 64,
        "verifier": {"class": "CountdownVerifier"},
    }
    versions = {"python": "3.12.1", "torch": "2.9.0"}
    manifest["sessions"] = [{"versions": versions, "commit": "c" * 40, "time": "2025-01-01"}]
    write_json(folder / "manifest.json", manifest)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    leads = {"start": -0.2, "GRPO": 0.0, "AR": 0.2, "AR, GRPO's time": 0.1, "twin": 0.0}
    return {
        name: write_full(root / str(i), random_right(lead=lead, seed=i), model=f"m/{i}")
        for i, (name, lead) in enumerate(leads.items())
    }


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    root = tmp_path_factory.mktemp("training")
    for name, budgets in (("GRPO", [32]), ("AR", BUDGETS)):
        for step in range(1, 6):
            line = {"step": step, "anytime_accuracy": 0.3, "uniform_accuracy": 0.1 * step}
            line |= {"final_accuracy": 0.5, "thinking/length": 20.0, "seconds": 1.5 * step}
            line |= {f"score/{b}": 0.2 for b in budgets}
            append_jsonl(root / name / "metrics.jsonl", line)
    return {name: root / name for name in ("GRPO", "AR")}


def report(tmp_path, runs, **options):
    return Page(write_report(runs, tmp_path / "page.html", **options))


def take(runs, *names):
    return {name: runs[name] for name in names}


# --- what the page holds -------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_page_of_one_two_or_five_runs(tmp_path, runs, count):
    chosen = dict(list(runs.items())[:count])
    page = report(tmp_path, chosen)
    bands = [f"{n} 95 %" for n in chosen]
    shown = [[t["name"].replace("&#x27;", "'") for t in f["data"]] for f in page.figures]
    assert shown[0][: 2 * count] == [*bands, *chosen]
    assert [row[0] for row in page.tables[0]] == ["run", *chosen]
    if count == 1:
        assert len(shown) == 1 and "difference" not in page.text.lower().split("how this was")[0]
    else:  # below, to the first, which has no curve there
        others = list(chosen)[1:]
        wide = [f"{n} at all budgets" for n in others]
        assert shown[0][2 * count :] == [*wide, *bands[1:], *others]
    assert page.text.count("The numbers at every budget") == 1


def test_the_table_is_the_summary_of_the_records(tmp_path, runs):
    page = report(tmp_path, take(runs, "start", "GRPO", "AR"), reference="GRPO")
    wanted = told_table(summary_table(read_tables(take(runs, "start", "GRPO", "AR")), "GRPO"))
    lines = [
        [cell.replace("[", " [").replace("]p", "] p") for cell in row] for row in page.tables[0]
    ]
    told = [[cell.strip() for cell in row] for row in lines]
    assert told[0] == list(wanted.columns)
    rows = [[str(c).replace("\u00a0", " ") for c in row] for row in wanted.itertuples(index=False)]
    assert told[1:] == rows
    assert rows[1][3:5] == ["—", "—"]  # the reference itself


def test_the_page_leads_with_the_result(tmp_path, runs):
    page = report(tmp_path, take(runs, "start", "GRPO", "AR"), reference="GRPO")
    first = page.text.partition("budget")[2].partition(" run ")[0]
    assert " AR is above GRPO at" in first and "points of anytime score" in first


def test_the_numbers_at_every_budget_are_the_paired_differences(tmp_path, runs):
    page = report(tmp_path, take(runs, "GRPO", "AR"), reference="GRPO")
    pairs = paired_differences(read_tables(take(runs, "GRPO", "AR")), "GRPO")
    first, told = pairs.iloc[0], page.tables[1]
    assert [row[0] for row in told[1:]] == [str(b) for b in BUDGETS]
    assert told[1][1] == f"{100 * first['accuracy_a']:.1f} %"
    points, interval = (
        _signed(first["difference"]),
        f"[{_signed(first['low'])}, {_signed(first['high'])}]",
    )
    assert told[1][3] == points + interval
    assert told[1][4] == f"[{_signed(first['band_low'])}, {_signed(first['band_high'])}]"


def _signed(fraction):
    return f"{100 * fraction:+.1f}".replace("-", "−")


def test_bands_are_the_95_percent_intervals(tmp_path, runs):
    page = report(tmp_path, take(runs, "GRPO", "AR"))
    right = random_right(lead=0.0, seed=1).mean(axis=(1, 3))  # (P, J)
    told = mean_interval(right, (0.0, 1.0))
    band = page.figures[0]["data"][0]
    assert band["name"] == "GRPO 95 %"
    assert band["y"][:4] == pytest.approx(told.high, abs=2e-4)
    assert band["y"][:3:-1] == pytest.approx(told.low, abs=2e-4)


def test_training_panels_by_update_and_by_time(tmp_path, runs, training):
    page = report(tmp_path, take(runs, "GRPO", "AR"), training=training)
    by_step, by_time = page.figures[1:]
    named = [t["name"] for t in by_step["data"] if t.get("showlegend")]
    assert named == ["GRPO", "AR"]
    assert by_time["layout"]["xaxis"]["title"]["text"] == "Seconds of training"
    assert "GRPO: not scored at" in page.text
    drawn = [t["name"] for t in by_step["data"] if t["xaxis"] == "x2"]  # anytime accuracy
    assert drawn == ["AR, each step", "AR"]
    assert by_step["data"][-1]["line"]["color"] != by_step["data"][0]["line"]["color"]


def test_equal_time_is_a_section_with_its_own_settings(tmp_path, runs):
    timed = {"GRPO": runs["GRPO"], "AR": runs["AR, GRPO's time"]}
    page = report(
        tmp_path,
        take(runs, "start", "GRPO", "AR"),
        reference="GRPO",
        equal_time=timed,
        equal_time_note="AR was stopped when GRPO was done.",
    )
    assert "At equal wall time of training AR was stopped when GRPO was done." in page.text
    assert len(page.figures) == 2
    differ = page.tables[-1]
    assert differ[0] == ["setting", "start", "GRPO", "AR", "AR (equal time)"]
    assert differ[1] == ["model", "m/0", "m/1", "m/2", "m/3"]


def test_settings_are_told_once_where_they_agree(tmp_path, runs):
    page = report(tmp_path, take(runs, "GRPO", "AR"))
    same = dict(page.tables[-2][1:])
    assert same["budgets (tokens)"] == "8, 16, 24, 32"
    assert same["commit"] == "c" * 12
    assert same["sampling"] == "temperature 1.0"


def test_a_manifest_that_lacks_facts_says_so(tmp_path):
    write_run(tmp_path / "bare", random_right(p=4))
    page = report(tmp_path, {"bare": tmp_path / "bare"})
    assert dict(page.tables[-1][1:])["verifier"] == "not recorded"


def test_runs_on_other_problems_are_said_to_be(tmp_path, runs):
    other = write_full(tmp_path / "other", random_right(p=20, seed=8), dataset="f" * 64)
    page = report(tmp_path, {"GRPO": runs["GRPO"], "other": other})
    assert "not all evaluated on the same set of problems" in page.text
    assert "20 problems)" in page.text
    assert "not all evaluated" not in report(tmp_path, take(runs, "GRPO", "AR")).text


def test_two_pages_of_the_same_runs_are_the_same(tmp_path, runs):
    for name in ("a", "b"):
        write_report(take(runs, "GRPO", "AR"), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# --- hostile text, no network --------------------------------------------------------------------


def test_hostile_text_is_shown_and_stays_text(tmp_path, runs, training):
    names = [HOSTILE, "</script><img src=x onerror=alert(2)>", "a\u202eb", "\ud800", "%{y}$x$"]
    hostile = dict(zip(names, runs.values(), strict=True))
    page = report(
        tmp_path,
        hostile,
        training={HOSTILE: training["AR"]},
        equal_time={HOSTILE: runs["start"], names[1]: runs["AR"]},
        equal_time_note=HOSTILE,
        title="</title>" + HOSTILE,
        notes=["<iframe src='https://example.org'></iframe>"],
    )
    clean = report(
        tmp_path, runs, training={"start": training["AR"]}, equal_time=take(runs, "start", "AR")
    )
    assert set(page.tags) == set(clean.tags)
    assert page.tags.count("script") == clean.tags.count("script")
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert HOSTILE in page.text and names[1] in page.text
    for figure in page.figures:
        whole = json.dumps(figure, ensure_ascii=False)
        assert "<script" not in whole and "<img" not in whole and "\u202e" not in whole
    assert "\u202e" not in page.text and "a\ufffdb" in page.text


def test_hostile_manifests_are_shown_and_stay_text(tmp_path, runs):
    folder = write_full(tmp_path / "run", random_right(p=4), model=HOSTILE)
    manifest = read_json(folder / "manifest.json")
    manifest["dataset"] |= {"name": HOSTILE, "card": "<a href='https://example.org'>x</a>"}
    write_json(folder / "manifest.json", manifest)
    page = report(tmp_path, {"run": folder})
    assert set(page.tags) == set(report(tmp_path, take(runs, "GRPO")).tags)
    assert page.text.count(HOSTILE) == 2


def test_the_page_loads_nothing_from_anywhere(tmp_path, runs, training):
    page = report(tmp_path, runs, training=training)
    loads = {"src", "href", "srcset", "action", "data", "poster", "background", "cite"}
    assert [a for a in page.attributes if a[1] in loads] == [("link", "href", "data:,")]
    text = (tmp_path / "page.html").read_text()
    (csp,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert csp.startswith("default-src 'none'") and "http" not in csp and "*" not in csp
    (style,) = re.findall(r"<style>(.*?)</style>", text, flags=re.S)
    assert "url(" not in style and "@import" not in style
    assert text.index("Content-Security-Policy") < text.index("<script")


@pytest.mark.slow
def test_a_browser_draws_every_figure_and_asks_nobody(tmp_path, runs, training):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    hostile = dict(zip([HOSTILE, "%{y}", "c"], runs.values(), strict=False))
    path = write_report(hostile, tmp_path / "page.html", training={"c": training["AR"]})
    log = tmp_path / "net.json"
    told = subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--enable-logging=stderr",
            "--virtual-time-budget=8000",
            f"--log-net-log={log}",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    drawn = re.findall(r'class="main-svg"', told.stdout)
    assert len(drawn) >= 4, told.stderr[-2000:]
    assert "Refused to" not in told.stderr and "Uncaught" not in told.stderr
    assert "plot.ly" not in log.read_text(errors="replace")


# --- folders that cannot be read -----------------------------------------------------------------


def test_a_partial_run_is_refused(tmp_path, runs):
    right = random_right(seed=9)
    folder = write_full(tmp_path / "partial", right, parts=4, written=3)
    both = {"GRPO": runs["GRPO"], "partial": folder}
    with pytest.raises(RunFolderError, match="3 of 4 parts are written"):
        report(tmp_path, both)


def test_folders_that_cannot_be_read_are_sentences(tmp_path, runs):
    def refused(folder, match):
        with pytest.raises(RunFolderError, match=match):
            report(tmp_path, {"GRPO": runs["GRPO"], "other": folder})
        assert not (tmp_path / "page.html").exists()

    refused(tmp_path / "none", "is not a folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "is empty")
    damaged = write_full(tmp_path / "damaged", random_right(p=3))
    part_path(damaged, "records", 0).write_bytes(b"PAR1 no")
    refused(damaged, "is damaged.*Run the same evaluation again")
    for chunks in (None, "two", 0, True):
        odd = write_full(tmp_path / "odd", random_right(p=3))
        manifest = read_json(odd / "manifest.json") | {"chunks": chunks}
        write_json(odd / "manifest.json", manifest)
        refused(odd, "of 1 part or more")
    stray = write_full(tmp_path / "stray", random_right(p=3))
    shutil.copy(part_path(stray, "records", 0), stray / "records" / "part-copy.parquet")
    assert report(tmp_path, {"stray": stray}).tables  # not a part: left alone


def test_one_shared_problem_is_told_without_an_interval(tmp_path):
    one = {n: write_run(tmp_path / n, random_right(p=1, seed=i)) for i, n in enumerate("ab")}
    assert "nan" not in report(tmp_path, one).text


def test_names_that_look_the_same_are_refused(tmp_path, runs):
    with pytest.raises(ValueError, match="Rename one"):
        report(tmp_path, {"a\u202e": runs["GRPO"], "a\u200f": runs["AR"]})


def test_a_training_folder_without_steps_is_a_sentence(tmp_path, runs):
    with pytest.raises(RunFolderError, match="metrics.jsonl does not exist"):
        report(tmp_path, take(runs, "GRPO"), training={"GRPO": tmp_path})


def test_runs_that_cannot_be_compared_are_named(tmp_path, runs):
    with pytest.raises(ValueError, match="no runs were given"):
        report(tmp_path, {})
    with pytest.raises(ValueError, match="reference 'x' is not one of the runs"):
        report(tmp_path, take(runs, "GRPO", "AR"), reference="x")
    fewer = write_run(tmp_path / "fewer", random_right(budgets=3), budgets=BUDGETS[:3])
    with pytest.raises(ValueError, match="'fewer' against 'GRPO'.*different budgets"):
        report(tmp_path, {"GRPO": runs["GRPO"], "fewer": fewer})
    apart = write_run(tmp_path / "apart", random_right(p=2), problems=["x", "y"])
    with pytest.raises(ValueError, match="'apart' against 'GRPO'.*share no problem"):
        report(tmp_path, {"GRPO": runs["GRPO"], "apart": apart})
