"""Runs → one HTML page that needs no network: tables, curves with bands, how it was measured."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from anytime_lab.look.figures import plot_curves, plot_training
from anytime_lab.look.live import JS
from anytime_lab.page import escaped, plain, table
from anytime_lab.priors import Prior
from anytime_lab.read import curves, told
from anytime_lab.read.curves import Folders, ProblemTable
from anytime_lab.read.training import mean_metrics, told_compared, training_frame
from anytime_lab.store.files import write_text
from anytime_lab.store.records import read_manifest

SMOOTHED = 10  # updates that a point of a strong training curve averages


def write_report(
    runs: Mapping[str, Folders],
    path: str | Path,
    *,
    reference: str | None = None,
    training: Mapping[str, Folders] | None = None,
    equal_time: Mapping[str, Folders] | None = None,
    equal_time_note: str = "",
    title: str = "Accuracy at every thinking budget",
    notes: Sequence[str] = (),
) -> Path:
    """Writes the comparison of evaluated runs as one self-contained HTML page.

    Args:
        runs: name → run folder of an evaluation, or a list of them: one for each training seed.
            Their mean is drawn, and how far the seeds are apart is told.
        path: the page; written in one step.
        reference: the run that the others are compared with; the first if None.
        training: name → output folder of a training run (its metrics.jsonl), or a list. Use
            the names of `runs`, so that colours agree.
        equal_time: name → run folder of evaluations after equal wall time of training, the
            reference among them (under its name in `runs`).
        equal_time_note: a sentence on how the times were made equal.
        notes: paragraphs below the title.

    Returns:
        path.

    Raises:
        RunFolderError: a folder cannot be read.
        ValueError: the reference is unknown, or runs cannot be compared.
    """
    if not runs:
        raise ValueError("no runs were given; expected a mapping from a name to its run folder.")
    runs, training, equal_time = _named(runs), _named(training or {}), _named(equal_time or {})
    reference = next(iter(runs)) if reference is None else plain(reference)
    names = list(dict.fromkeys([*runs, *training, *equal_time]))
    seeds = curves.read_tables(runs)
    metrics = {name: mean_metrics(run) for name, run in training.items()}
    trained = training_frame(metrics, SMOOTHED) if metrics else None
    axes = [over for over in ("step", "seconds") if metrics and trained[over].notna().all()]
    timed = curves.read_tables(equal_time)
    apart = {f"{n} (equal time)": run for n, run in equal_time.items() if run != runs.get(n)}
    same, differ = _settings({**runs, **apart})
    several = max(map(len, seeds.values())) > 1
    pages = Environment(
        loader=FileSystemLoader(JS),
        autoescape=True,
        undefined=StrictUndefined,
        # text is escaped as everywhere; what is Markup is finished HTML
        finalize=lambda told: told if isinstance(told, Markup) else Markup(escaped(told)),
    )
    page = pages.get_template("report.html").render(
        title=title,
        notes=notes,
        main=_compared(seeds, reference, names),
        seeds=told.told_seeds(told.seed_frame(seeds)) if several else None,
        about_seeds=told.ABOUT_SEEDS,
        training=[plot_training(trained, names, over=over) for over in axes],
        smoothed=SMOOTHED,
        left_out=told_compared(metrics) if metrics else "",
        timed=_compared(timed, reference, names) if timed else None,
        equal_time_note=equal_time_note,
        same=same,
        differ=differ,
        table=_table,
        data=_data,
        plotly=Markup(get_plotlyjs()),
    )
    write_text(path, page)
    return Path(path)


def _named(folders: Mapping[str, Folders]) -> dict[str, list[Path]]:
    """The folders by names whose every character can be shown and saved."""
    named = {plain(name): curves.folders_of(folder) for name, folder in folders.items()}
    if len(named) < len(folders):
        raise ValueError(
            f"names of runs differ in characters only that cannot be shown: {list(folders)}. "
            "Rename one of them."
        )
    return named


def _compared(
    seeds: Mapping[str, Sequence[ProblemTable]], reference: str, names: Sequence[str]
) -> dict[str, Any]:
    """The story, headline table, curves and paired differences of one set of runs."""
    tables = {name: curves.problem_table(several) for name, several in seeds.items()}
    against = reference if len(tables) > 1 else None
    pairs = curves.paired_differences(tables, against) if against else None
    apart = {
        name: curves.difference_table(table, tables[against])
        for name, table in tables.items()
        if name != reference
    }
    prior = Prior.uniform(tables[reference].budgets)  # all were measured at these
    story = told.told_story(tables, apart, reference, prior)
    frame, height = told.tidy_curves(tables, apart), 640 if against else 440
    numbers = [("", _by_budget(frame, ALONE))]
    if against:
        numbers = [
            (f"{run} against {against}, {curve['n_problems'].max():,} problems.",
             _by_budget(curve, PAIRED))
            for run, curve in pairs[pairs["measure"] == "accuracy"].groupby("run", sort=False)
        ]  # fmt: skip
    return {
        "against": against,
        "story": story,
        "summary": told.told_table(told.summary_table(tables, against)),
        "figure": plot_curves(frame, names, reference=reference, title="", height=height),
        "verdicts": told.verdicts(pairs) if against else [],
        "numbers": numbers,
    }


def _by_budget(curve: pd.DataFrame, columns: Mapping[str, tuple]) -> pd.DataFrame:
    """The numbers at every budget, told for a reader; columns: title → (told, columns of it)."""
    frame = pd.DataFrame({"budget": curve["budget"].map("{:,}".format)})
    for title, (words, of) in columns.items():
        frame[title] = [words(*row) for row in curve[of].to_numpy(dtype=float)]
    return frame


ALONE = {"accuracy": (told.told_percent, ["accuracy", "low", "high"])}
PAIRED = {
    "accuracy": (told.told_percent, ["accuracy_a"]),
    "reference": (told.told_percent, ["accuracy_b"]),
    "difference": (told.told_points, ["difference", "low", "high"]),
    "at all budgets at once": (
        lambda low, high: told.told_points(0.0, low, high).partition(" ")[2],
        ["band_low", "band_high"],
    ),
    "p": (lambda p: told.told_p(p).lstrip("p="), ["p"]),
}


# --- how it was measured -------------------------------------------------------------------------


def _settings(runs: Mapping[str, list[Path]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What the manifests say: what is the same in all runs, and what differs, run by run."""
    facts = pd.DataFrame({"setting": list(_FACTS)})
    for name, several in runs.items():
        manifests = [read_manifest(run) for run in several]
        found = ([_fact(get, manifest) for manifest in manifests] for get in _FACTS.values())
        facts[name] = ["; ".join(dict.fromkeys(fact)) for fact in found]
    alike = facts[[*runs]].nunique(axis=1) == 1
    return facts.loc[alike].iloc[:, :2].set_axis(["setting", "value"], axis=1), facts[~alike]


def _fact(get: Callable[[Mapping[str, Any]], str], manifest: Mapping[str, Any]) -> str:
    try:
        return get(manifest)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return "not recorded"


def _listed(of: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in of.items())


def _commit(commit: str | None) -> str:
    dirty = "-dirty" if commit and commit.endswith("-dirty") else ""
    return commit[:12] + dirty if commit else "—"


_FACTS = {
    "problems": lambda m: f"{m['dataset']['problems']:,}",
    "dataset": lambda m: m["dataset"]["name"] or "(not named)",
    "about the dataset": lambda m: m["dataset"]["card"] or "—",
    "dataset hash": lambda m: m["settings"]["dataset"][:16],
    "samples per problem": lambda m: str(m["settings"]["num_samples"]),
    "summaries per budget": lambda m: str(m["settings"]["num_summaries"]),
    "budgets (tokens)": lambda m: ", ".join(f"{b:,}" for b in m["settings"]["budgets"]),
    "sampling": lambda m: _listed(m["settings"]["sampling"]),
    "seed": lambda m: str(m["settings"]["seed"]),
    "verifier": lambda m: m["settings"]["verifier"]["class"],
    "model": lambda m: m["model_path"] or "(in memory)",
    "model hash": lambda m: m["settings"]["model"][:16],
    "versions": lambda m: _listed(m["sessions"][-1]["versions"]),
    "commit": lambda m: _commit(m["sessions"][-1]["commit"]),
    "measured": lambda m: m["sessions"][-1]["time"],
}


# --- HTML ----------------------------------------------------------------------------------------


def _table(frame: pd.DataFrame, caption: str, kind: str = "") -> Markup:
    wordy = " wordy" if frame.columns[0] in ("run", "setting") else ""
    html = table(list(frame.columns), frame.itertuples(index=False), caption, kind + wordy)
    # the interval below its value, and p below that
    return Markup(html if kind else html.replace(" [", "<br>[").replace("] p", "]<br>p"))


def _data(figure: go.Figure) -> dict:
    """The figure as plain values; the page's script gives the colours, light or dark."""
    return json.loads(figure.update_layout(template="none").update_traces(meta=None).to_json())
