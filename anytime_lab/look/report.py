"""Runs → one HTML page that needs no network: tables, curves with bands, how it was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from anytime_lab.look.figures import plot_curves
from anytime_lab.look.live import JS
from anytime_lab.look.training_view import plot_training
from anytime_lab.page import escaped, paragraph, plain, table
from anytime_lab.priors import Prior
from anytime_lab.read.curves import accuracy_curve, paired_differences
from anytime_lab.read.told import (
    ABOUT_SEEDS,
    Folders,
    common_budgets,
    difference_table,
    folders_of,
    mean_metrics,
    mean_tables,
    read_seed_tables,
    seed_frame,
    summary_table,
    tidy_curves,
    told_percent,
    told_points,
    told_seeds,
    told_story,
    told_table,
    verdicts,
)
from anytime_lab.read.training import told_compared, training_frame
from anytime_lab.store.files import write_text
from anytime_lab.store.records import finished_chunks, read_manifest

NUMBERS = "The numbers at every budget"
NO_SCRIPT = "The figures are drawn by a script inside this page; without it the tables remain."
SMOOTHED = 10  # updates that a point of a strong training curve averages
CSP = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)


def write_report(
    runs: Mapping[str, Folders],
    path: str | Path,
    *,
    reference: str | None = None,
    prior: Prior | None = None,
    training: Mapping[str, Folders] | None = None,
    equal_time: Mapping[str, Folders] | None = None,
    equal_time_note: str = "",
    title: str = "Accuracy at every thinking budget",
    notes: Sequence[str] = (),
    allow_partial: bool = False,
    resamples: int = 2000,
    seed: int = 0,
) -> Path:
    """Writes the comparison of evaluated runs as one self-contained HTML page.

    Args:
        runs: name → run folder of an evaluation, or a list of them: one for each training seed.
            Their mean is drawn, and how far the seeds are apart is told.
        path: the page; written in one step.
        reference: the run that the others are compared with; the first if None.
        prior: weights of the anytime accuracy; None is the plain mean over the budgets.
        training: name → output folder of a training run (its metrics.jsonl), or a list. Use
            the names of `runs`, so that colours agree.
        equal_time: name → run folder of evaluations after equal wall time of training, the
            reference among them (under its name in `runs`).
        equal_time_note: a sentence on how the times were made equal.
        notes: paragraphs below the title.
        allow_partial: take runs that are still being written; the page then says so.
        resamples, seed: of the bootstrap.

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
    seeds = read_seed_tables(runs, allow_partial)
    tables = mean_tables(seeds)
    body = [_heading(1, title), *(paragraph(note) for note in notes)]
    body += _comparison(tables, reference, prior, names, resamples, seed)
    if max(map(len, seeds.values())) > 1:
        body += [_heading(2, "Training seeds"), paragraph(ABOUT_SEEDS)]
        body.append(_table(told_seeds(seed_frame(seeds, prior)), "Percent; mean ± SD over seeds."))
    if training:
        body.append(_heading(2, "Training"))
        body += _training({name: mean_metrics(run) for name, run in training.items()}, names)
    if equal_time:
        body.append(_heading(2, "At equal wall time of training"))
        if equal_time_note:
            body.append(paragraph(equal_time_note))
        timed = mean_tables(read_seed_tables(equal_time, allow_partial))
        body += _comparison(timed, reference, prior, names, resamples, seed, level=3)
    body.append(_heading(2, "How this was measured"))
    timed_apart = {
        f"{name} (equal time)": run for name, run in equal_time.items() if run != runs.get(name)
    }
    body += _method({**runs, **timed_apart}, prior, resamples)
    write_text(path, _page(title, body))
    return Path(path)


def _named(folders: Mapping[str, Folders]) -> dict[str, list[Path]]:
    """The folders by names whose every character can be shown and saved."""
    named = {plain(name): folders_of(folder) for name, folder in folders.items()}
    if len(named) < len(folders):
        raise ValueError(
            f"names of runs differ in characters only that cannot be shown: {list(folders)}. "
            "Rename one of them."
        )
    return named


def _comparison(tables, reference, prior, names, resamples, seed, level: int = 2) -> list[str]:
    """The story, headline table, curves and paired differences of one set of runs."""
    many = len(tables) > 1
    pairs = paired_differences(tables, reference, prior, resamples, seed) if many else None
    summary = summary_table(tables, reference if many else None, prior, resamples, seed)
    others = [name for name in tables if name != reference]
    apart = {name: difference_table(tables[name], tables[reference]) for name in others}
    budgets = common_budgets(list(tables.values()))
    weights = prior or (Prior.uniform(budgets) if budgets else None)
    parts = [paragraph(told_story(tables, apart, reference, weights) + ".", "story")]
    caption = "95 % intervals in brackets, clustered by problem; thinking tokens: mean at the "
    caption += "largest budget."
    if many:
        caption += f" Differences to {reference} in percentage points, paired over problems."
    parts.append(_table(told_table(summary), caption))
    if level == 2:
        parts.append(_heading(2, "Accuracy by thinking budget"))
    label = "Accuracy by thinking budget"
    label += f", and its paired difference to {reference}" if many else ""
    curves = tidy_curves(tables, apart)
    height = 640 if many else 440
    figure = plot_curves(curves, names, reference=reference, title="", height=height)
    parts.append(_figure(figure, label))
    if not many:
        curve = accuracy_curve(*tables.values())
        told = {"accuracy": (told_percent, ["accuracy", "low", "high"])}
        parts.append(_details(NUMBERS, _by_budget(curve, told, "")))
    else:
        parts += [paragraph(sentence) for sentence in verdicts(pairs)]
        curves = pairs[pairs["measure"] == "accuracy"].groupby("run", sort=False)
        inner = [
            _by_budget(
                curve, PAIRED, f"{run} against {reference}, {curve['n_problems'].max():,} problems."
            )
            for run, curve in curves
        ]
        parts.append(_details(NUMBERS, "".join(inner)))
    return parts


def _training(metrics: Mapping[str, pd.DataFrame], names: Sequence[str]) -> list[str]:
    frame = training_frame(metrics, SMOOTHED)
    said = f"Scores of the training rollouts at each update; strong: mean of {SMOOTHED} updates."
    said = f"{said} {told_compared(metrics)}".strip()
    parts = [paragraph(said), _figure(plot_training(frame, names), "Training by update")]
    if frame["seconds"].notna().all():
        parts.append(paragraph("The same against the wall time of training."))
        timed = plot_training(frame, names, over="seconds")
        parts.append(_figure(timed, "Training by wall time"))
    return parts


def _by_budget(curve: pd.DataFrame, columns: Mapping[str, tuple], caption: str) -> str:
    """The numbers at every budget, told for a reader; columns: title → (told, columns of it)."""
    told = {"budget": [f"{b:,}" for b in curve["budget"]]}
    for title, (words, of) in columns.items():
        rows = curve[[*of, *[of[0]] * (3 - len(of))]].to_numpy(dtype=float)
        told[title] = [words(*row) for row in rows]
    return _table(pd.DataFrame(told), caption)


def _value(value: float, _low: float, _high: float) -> str:
    return told_percent(value, math.nan, math.nan)


def _bounds(value: float, low: float, high: float) -> str:
    return told_points(value, low, high).partition(" ")[2]


PAIRED = {
    "accuracy": (_value, ["accuracy_a"]),
    "reference": (_value, ["accuracy_b"]),
    "difference": (told_points, ["difference", "low", "high"]),
    "by bootstrap": (_bounds, ["difference", "boot_low", "boot_high"]),
}


# --- how it was measured -------------------------------------------------------------------------


def _method(runs: Mapping[str, list[Path]], prior: Prior | None, resamples: int) -> list[str]:
    manifests = {name: [read_manifest(run) for run in several] for name, several in runs.items()}
    rows = {
        label: ["; ".join(dict.fromkeys(_fact(get, m) for m in of)) for of in manifests.values()]
        for label, get in _FACTS.items()
    }
    same = {label: values[0] for label, values in rows.items() if len(set(values)) == 1}
    differ = {label: values for label, values in rows.items() if label not in same}
    weights = "the plain mean over the budgets"
    if prior is not None:
        told = ", ".join(f"{b}: {w:.3g}" for b, w in zip(prior.budgets, prior.weights, strict=True))
        weights = f"the mean under the budget prior {told}"
    said = [
        "Each sample is one thinking of the largest budget, cut at every budget, so all points of "
        "a curve come from the same thinkings. Anytime accuracy is " + weights + "; final accuracy "
        "is that at the largest budget.",
        "The problem is the unit of uncertainty: its samples are averaged first. Intervals "
        "of the table and the bands are Student-t over problems, those of differences are paired "
        f"over the same problems; the bootstrap draws problems {resamples:,} times, jointly for "
        "all budgets. The bands are for each budget by itself. They hold what another draw of "
        "problems would change, not what another training seed would.",
    ]
    if "dataset hash" in differ:
        said.append(
            "The runs were not all evaluated on the same set of problems; differences are over the "
            "problems that two runs share by their id."
        )
    for name, several in manifests.items():
        done = sum(len(finished_chunks(run)) for run in runs[name])
        chunks = sum(manifest["chunks"] for manifest in several)
        if done < chunks:
            said.append(f"{name} was still being written: {done} of {chunks} parts were read.")
    parts = [paragraph(text) for text in said]
    if same:
        frame = pd.DataFrame({"setting": list(same), "value": list(same.values())})
        caption = "The same in all runs." if len(runs) > 1 else "Settings of the run."
        parts.append(_table(frame, caption, text=True))
    if differ:
        columns = {name: [v[i] for v in differ.values()] for i, name in enumerate(manifests)}
        frame = pd.DataFrame({"setting": list(differ), **columns})
        parts.append(_table(frame, "Different between runs.", text=True))
    return parts


def _fact(get: Callable[[Mapping[str, Any]], str], manifest: Mapping[str, Any]) -> str:
    try:
        return get(manifest)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return "not recorded"


def _sampling(manifest: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in manifest["settings"]["sampling"].items())


def _versions(manifest: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in manifest["sessions"][-1]["versions"].items())


def _short_commit(commit: str | None) -> str:
    if commit is None:
        return "—"
    return commit[:12] + ("-dirty" if commit.endswith("-dirty") else "")


_FACTS = {
    "problems": lambda m: f"{m['dataset']['problems']:,}",
    "dataset": lambda m: m["dataset"]["name"] or "(not named)",
    "about the dataset": lambda m: m["dataset"]["card"] or "—",
    "dataset hash": lambda m: m["settings"]["dataset"][:16],
    "samples per problem": lambda m: str(m["settings"]["num_samples"]),
    "summaries per budget": lambda m: str(m["settings"]["num_summaries"]),
    "budgets (tokens)": lambda m: ", ".join(f"{b:,}" for b in m["settings"]["budgets"]),
    "sampling": _sampling,
    "seed": lambda m: str(m["settings"]["seed"]),
    "verifier": lambda m: m["settings"]["verifier"]["class"],
    "model": lambda m: m["model_path"] or "(in memory)",
    "model hash": lambda m: m["settings"]["model"][:16],
    "versions": _versions,
    "commit": lambda m: _short_commit(m["sessions"][-1]["commit"]),
    "measured": lambda m: m["sessions"][-1]["time"],
}


# --- HTML ----------------------------------------------------------------------------------------


def _heading(level: int, text: str) -> str:
    return f"<h{level}>{escaped(text)}</h{level}>"


def _details(summary: str, inner: str) -> str:
    return f"<details><summary>{escaped(summary)}</summary>{inner}</details>"


def _table(frame: pd.DataFrame, caption: str, text: bool = False) -> str:
    wordy = frame.columns[0] in ("run", "setting")
    kind = " ".join(["text"] * text + ["wordy"] * wordy)
    told = table(list(frame.columns), frame.itertuples(index=False), caption, kind)
    return told if text else told.replace(" [", "<br>[")  # the interval below its value


def _figure(figure: go.Figure, label: str) -> str:
    """A place for the figure and its JSON, which no text inside can end early."""
    figure.update_layout(template="none")  # the page's script gives the colours, light or dark
    figure.update_traces(meta=None)
    data = json.dumps(json.loads(figure.to_json()), ensure_ascii=True)
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return (
        f'<div class="wide"><div class="figure" aria-label="{escaped(label)}" role="figure" '
        f'style="height:{figure.layout.height}px"></div>'
        f'<script type="application/json" class="figure-data">{data}</script></div>'
    )


def _page(title: str, body: Sequence[str]) -> str:
    inner = "\n".join(body)
    css, draw = ((JS / f"report.{kind}").read_text() for kind in ("css", "js"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{CSP}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escaped(title)}</title>'
        f"<style>{css}</style><script>{get_plotlyjs()}</script></head>\n"
        f"<body>\n<noscript><p>{NO_SCRIPT}</p></noscript>\n{inner}\n<script>{draw}</script></body></html>\n"
    )
