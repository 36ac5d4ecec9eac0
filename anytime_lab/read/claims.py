"""A study over seeds → what each claim comes to, at equal updates, equal time and equal FLOPs.

Seeds are the unit of training, problems lie within: an effect's interval joins Student's over the
seeds and Student's over the problems (of the mean over seeds), as the root of the sum of their
squares. What chance adds to a single thinking is in both, so it is rather too long than too short.

Dimensions: R seeds, P problems, J budgets.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.special import stdtrit

from anytime_lab.read.curves import CONFIDENCE, ProblemTable, problem_table
from anytime_lab.read.policies import AGREEMENT, lay_out, policy_frame, replay_all
from anytime_lab.read.policies import CONFIDENCE as SURE
from anytime_lab.read.training import BASELINE_NAMES, VARIANCE, read_metrics
from anytime_lab.store.files import METRICS, RESULT, RunFolderError, read_json
from anytime_lab.store.records import read_manifest, read_records, write_table

TABLES = {  # of a study, a parquet file each: columns; answers has one more for each budget
    "costs": ["update", "seconds", "flops", "run", "seed"],
    "variance": ["update", "ratio", "baseline", "budget", "run", "seed"],
    "exits": ["policy", "setting", "value", "tokens", "accuracy", "difference", "run", "seed"],
    "answers": ["problem", "tokens", "run", "seed", "update"],  # last: with it a study is whole
}
START = "start"  # the run that trains nothing: what the others have at update 0
# What runs are compared at an equal amount of training of: words. FLOPs are 2 × parameters a
# sampled token and 6 × parameters a token of the packed rows of an update; what summaries that
# begin alike share is counted for each.
AXES = {"updates": "updates", "seconds": "processor time", "flops": "FLOPs"}
SMALL = 0.25  # of the largest budget: which ones are small
COURSE = ["run", "cost", "value", "low", "high", "seeds"]  # of a frame that a course is drawn of


# --- the study -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Study:
    """What the runs of a study were right on, and what their training took.

    answers: a row per run, seed, update (0 is the start) and problem: `tokens` of the thinking,
    and a column per budget, the share of right answers. costs: a row per run, seed and update:
    seconds (the median over seeds), flops. variance: per run, seed, update, baseline and budget,
    the `ratio` Var[R − V] / Var[R] over thinkings that reach the budget, median since the
    checkpoint before; missing where runs have one budget. exits: per run, seed, policy and setting
    of an early-exit rule, tokens, accuracy and `difference` to the plain curve there.
    """

    answers: pd.DataFrame
    costs: pd.DataFrame
    variance: pd.DataFrame
    exits: pd.DataFrame

    @property
    def budgets(self) -> list[int]:
        """J, in tokens."""
        return [int(name) for name in self.answers.columns if name.isdecimal()]

    @cached_property
    def runs(self) -> dict[str, list[int]]:
        """Name → its seeds, in the order of the study."""
        return self.costs.groupby("run", sort=False)["seed"].unique().map(sorted).to_dict()

    @cached_property
    def values(self) -> dict[tuple[str, int, int], np.ndarray]:
        """(run, seed, update) → (P, J + 1): right at each budget, and the thinking's tokens."""
        rows = self.answers.sort_values("problem").groupby(["run", "seed", "update"])
        columns = [*map(str, self.budgets), "tokens"]
        return {key: part[columns].to_numpy(dtype=float) for key, part in rows}

    def course(self, run: str, seed: int, axis: str) -> tuple[np.ndarray, np.ndarray]:
        """What a run was, checkpoint by checkpoint: its costs (K,), values (K, P, J + 1)."""
        costs = self.costs[(self.costs["run"] == run) & (self.costs["seed"] == seed)]
        costs = costs.assign(updates=costs["update"]).set_index("update")[axis].sort_index()
        keys = {(START, 0, 0): 0.0} if (START, 0, 0) in self.values else {}
        keys |= {(run, seed, update): cost for update, cost in costs.items()}
        return np.array([*keys.values()]), np.stack([self.values[key] for key in keys])

    def at(self, run: str, seeds: Sequence[int], axis: str, cost: float) -> np.ndarray:
        """(R, P, J + 1) at that cost, interpolated between the two nearest checkpoints."""
        told = []
        for costs, values in (self.course(run, seed, axis) for seed in seeds):
            parts = np.array([np.interp(cost, costs, each) for each in np.eye(len(costs))])
            told.append(np.tensordot(parts, values, 1))
        return np.stack(told)

    def shared_cost(self, runs: Sequence[str], axis: str) -> float:
        """The most of an axis that each of the runs has spent, with every seed."""
        every = [(run, seed) for run in runs for seed in self.runs[run]]
        return float(min(self.course(*of, axis)[0].max() for of in every))


def open_study(folder: str | Path, gathered: str | Path = "") -> Study:
    """A study by its folder, or by that of the sweep that makes it: then it is gathered first.

    Args:
        folder: what `gather_study` wrote, or the sweep's folder.
        gathered: where to write what a sweep gives; by default FOLDER-gathered.

    Raises:
        RunFolderError: a file of the study is missing or damaged; or as `gather_study`.
    """
    folder = Path(folder)
    if not (folder / "answers.parquet").exists():
        folder = gather_study(folder, gathered or f"{folder}-gathered")
    try:
        frames = {name: pd.read_parquet(folder / f"{name}.parquet") for name in TABLES}
        for name, columns in TABLES.items():
            if missing := set(columns) - set(frames[name]):
                raise ValueError(f"{name}.parquet lacks {', '.join(sorted(missing))}")
        return Study(**frames)
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{folder} holds no whole study ({error}). Name the folder of one that was gathered "
            "(experiments/claims ships), or of the sweep that makes one (runs/claims)."
        ) from error


def gather_study(sweep: str | Path, folder: str | Path) -> Path:
    """Bring a sweep of experiments/claims.yaml, or one like it, into four small files.

    What has no result yet is left out. A run that went on from another's model begins with the
    other's checkpoints and costs.

    Args:
        sweep: its folder: NAME/seed-N/train and NAME/seed-N/course/checkpoint-K below it.
        folder: where the files go; is returned.

    Raises:
        RunFolderError: no run has a result, or what one wrote is damaged.
    """
    sweep, ids, tables = Path(sweep).resolve(), None, {name: [] for name in TABLES}
    results = sweep.glob(f"*/seed-[0-9]*/course/{RESULT}")
    for result in sorted(results, key=lambda path: path.parents[1].stat().st_mtime):
        course = result.parent
        run, seed = course.parent.parent.name, int(course.parent.name.removeprefix("seed-"))
        of, before = {"run": run, "seed": seed}, {"update": 0, "seconds": 0.0, "flops": 0.0}
        own = _checkpoints(course) or {0: course}
        for train in _stages(course.parent / "train", sweep):
            mine = train.parent == course.parent
            asked_at = own if mine else _checkpoints(train.parent / "course")
            for update, place in asked_at.items():
                records = read_records(place)
                table = problem_table(records)
                ids = table.problems if ids is None else ids
                if not np.array_equal(table.problems, ids):
                    raise RunFolderError(
                        f"{place} was evaluated on other problems than the runs before it. Run the "
                        "sweep again, which makes anew what was made with other settings."
                    )
                answers = _answers(records, table)
                tables["answers"].append(answers.assign(**of, update=before["update"] + update))
            if train.exists():
                lines = read_metrics(train)
                costs = _costs(train, lines, read_manifest(own[min(own)])["parameters"])
                costs = costs.assign(**{axis: costs[axis] + before[axis] for axis in before}, **of)
                tables["costs"].append(costs[lines["step"].isin(asked_at)])
                if asked_at:  # of an earlier training that was not evaluated the costs count
                    variance = _variance(lines, [*asked_at]).assign(**of)
                    variance["update"] += before["update"]
                    tables["variance"].append(variance)
                before = {axis: costs[axis].iloc[-1] for axis in before}
        exits = policy_frame(replay_all(lay_out(records)))[TABLES["exits"][:-2]]
        tables["exits"].append(exits.round(4).assign(**of))
    if not tables["costs"]:
        raise RunFolderError(
            f"{sweep} holds no study, and no run with a result. Name the folder of a study that "
            "was gathered (experiments/claims ships), or of a sweep that has run (runs/claims)."
        )
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, frames in tables.items():
        frame = pd.concat(frames, ignore_index=True)
        if name == "costs":  # the machine may have had other work: what it took most seeds
            alike = frame.groupby(["run", "update"])["seconds"]
            frame["seconds"] = alike.transform("median").round(2)
        write_table(
            Path(folder) / f"{name}.parquet", pa.Table.from_pandas(frame, preserve_index=False)
        )
    return Path(folder)


def _answers(records: pd.DataFrame, table: ProblemTable) -> pd.DataFrame:
    """A row per problem, numbered in the order of the ids."""
    length = records.groupby("problem_id", observed=True)["thinking_tokens"].mean()
    length = length.rename(index=str).loc[table.problems].to_numpy(dtype="float32")
    right = pd.DataFrame(table.values, columns=[*map(str, table.budgets)], dtype="float32")
    return right.assign(problem=np.arange(len(right), dtype="int16"), tokens=length)


def _stages(train: Path, sweep: Path) -> list[Path]:
    """The trainings that a run is made of: those that it went on from, then its own."""
    told = train / "run.json"
    begun = Path(read_json(told)["parameters"].get("model", "") if told.exists() else "").parent
    went_on = sweep in begun.parents and (begun / METRICS).exists()
    return [*(_stages(begun, sweep) if went_on else ()), train]


def _checkpoints(course: Path) -> dict[int, Path]:
    """Update → where its checkpoint was evaluated, in order."""
    found = {int(place.name.removeprefix("checkpoint-")): place for place in course.glob("check*")}
    return dict(sorted(found.items()))


def _costs(train: Path, lines: pd.DataFrame, parameters: int) -> pd.DataFrame:
    """What a training had spent after each step: columns update, seconds, flops."""
    sampled = ["total/thinking_tokens", "total/summary_tokens"]
    counted = ["cpu_seconds", *sampled, "total/packed_tokens"]
    if missing := set(counted) - set(lines):
        raise RunFolderError(
            f"{train} does not tell {', '.join(sorted(missing))}: it was trained by an earlier "
            "version. Remove the folder and run the sweep again."
        )
    flops = parameters * (2.0 * lines[sampled].sum(axis=1) + 6.0 * lines["total/packed_tokens"])
    told = {"update": lines["step"], "seconds": lines["cpu_seconds"], "flops": flops}
    return pd.DataFrame(told)


def _variance(lines: pd.DataFrame, updates: Sequence[int]) -> pd.DataFrame:
    """Medians since the checkpoint before: columns update, ratio, baseline, budget."""
    upto = np.take(updates, np.searchsorted(updates, lines["step"]), mode="clip")
    ratios = lines.filter(regex=r"^variance/ratio/").groupby(upto).median().rename_axis("update")
    told = ratios.melt(ignore_index=False, value_name="ratio").reset_index()
    names = told.pop("variable").str.extract(VARIANCE)[["baseline", "budget"]]
    return told.join(names.astype({"budget": float}))


# --- effects -------------------------------------------------------------------------------------


class Effect(NamedTuple):
    """A mean over seeds with its 95 % interval.

    seed_sd: its standard deviation over seeds.
    """

    value: float
    low: float
    high: float
    seed_sd: float
    seeds: int


def effect_of(values: np.ndarray) -> Effect:
    """The mean of (R, P) numbers over crossed seeds and problems; P 1 are means already.

    One seed gives no interval. See the module's first lines.
    """
    count, problems = values.shape
    by_seed, by_problem = values.mean(axis=1), values.mean(axis=0)
    spread = float(by_seed.std(ddof=1)) if count > 1 else math.nan
    within = float(by_problem.std(ddof=1)) if problems > 1 else 0.0
    halves = [
        stdtrit(max(n - 1, 1), (1 + CONFIDENCE) / 2) * deviation / math.sqrt(n)
        for n, deviation in ((count, spread), (problems, within))
    ]
    mean, half = float(values.mean()), math.hypot(*halves)
    return Effect(mean, mean - half, mean + half, spread, count)


def seeds_needed(seed_sd: float, difference: float = 0.02, power: float = 0.8) -> int:
    """How many seeds tell a difference from 0 with such a chance, by their spread alone.

    Args:
        seed_sd: standard deviation of the difference over seeds.
    """
    for count in range(2, 1000):
        reach = stdtrit(count - 1, (1 + CONFIDENCE) / 2) + stdtrit(count - 1, power)
        if reach * seed_sd / math.sqrt(count) <= difference:
            return count
    raise ValueError(f"a spread of {seed_sd} hides {difference}; 1,000 seeds do not show it.")


# Measure → words, and its weights on the values (J + 1,), given the budgets.
MEASURES: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "anytime": ("anytime accuracy", lambda b: np.append(np.full(len(b), 1 / len(b)), 0.0)),
    "final": ("accuracy at the largest budget", lambda b: np.append(b == b[-1], 0.0)),
    "small": (
        "accuracy at up to a quarter of the largest budget",
        lambda b: np.append((b <= SMALL * b[-1]) / (b <= SMALL * b[-1]).sum(), 0.0),
    ),
    "length": ("tokens of thinking", lambda b: np.append(np.zeros(len(b)), 1.0)),
    **{
        f"at {at}": (f"accuracy at {at} tokens", lambda b, at=at: np.append(b == at, 0.0))
        for at in (24, 48, 72, 96)
    },
}


class Claim(NamedTuple):
    """One sentence that a study can bear out or not: `run` is `sign` of `against` by a measure."""

    part: str
    words: str
    run: str
    against: str
    measure: str = "anytime"
    sign: int = 1  # 1 above, -1 below, 0 where nothing is claimed


def _versus(part: str, words: str, runs: str, against: str, **more) -> list[Claim]:
    return [Claim(part, words.format(run), run, against, **more) for run in runs.split(", ")]


SPECIALISTS = {24: "GRPO at 24", 48: "GRPO at 48", 72: "GRPO at 72", 96: "GRPO"}
TODAY = "L1, group length, DAPO overlong, S-GRPO, ThinkPrune to 48"
CLAIMS: tuple[Claim, ...] = (
    *_versus("a", "{} above GRPO", "AR-uniform, AR-linear, AR-base", "GRPO"),
    *_versus("b", "{} above AR-base at small budgets", "AR-uniform, AR-linear", "AR-base",
             measure="small"),
    Claim("c", "AR-base above GRPO at its last answer", "AR-base", "GRPO", "final"),
    Claim("d", "decoupling alone helps", "GRPO+decouple", "GRPO"),
    Claim("d", "variance reduction alone helps", "GRPO+vr", "GRPO"),
    Claim("d", "variance reduction helps beside decoupling", "AR-base", "GRPO+decouple"),
    *_versus("e", "{} in place of BRPO's is worse", "baseline V1, baseline V2, no baseline",
             "AR-uniform", sign=-1),
    *_versus("f", "thinkings of {} are shorter", "AR-uniform, AR-linear, AR-base", "GRPO",
             measure="length", sign=-1),
    *(
        Claim("g", f"a specialist for {at} tokens, stopped there", run, "AR-uniform", f"at {at}", 0)
        for at, run in SPECIALISTS.items()
    ),
    *_versus("h", "{} instead of 0.5", "lambda 0, lambda 1", "AR-uniform", sign=0),
    *_versus("i", "{} instead of 4", "1 summary, 2 summaries, 8 summaries", "AR-uniform", sign=0),
    Claim("weights", "summaries unweighted, as the authors' code", "summaries unweighted",
          "AR-uniform", sign=0),
    *_versus("today", "{} against GRPO", TODAY, "GRPO", sign=0),
    *_versus("today", "{} is below AR-uniform", TODAY, "AR-uniform", sign=-1),
)  # fmt: skip


def claim_frame(study: Study, claims: Sequence[Claim] = CLAIMS) -> pd.DataFrame:
    """Each claim at equal amounts of each axis, as far as both runs went.

    Returns the fields of a claim (its words as claim) and of its effect (its value as effect), with
    axis, cost and verdict; accuracies as fractions. Claims on runs or budgets that the study lacks
    are left out.
    """
    rows = []
    for claim in claims:
        seeds = sorted(set(study.runs.get(claim.run, ())) & set(study.runs.get(claim.against, ())))
        weights = MEASURES[claim.measure][1](np.array(study.budgets))
        for axis in AXES if seeds and weights.any() else ():
            cost = study.shared_cost([claim.run, claim.against], axis)
            pair = [study.at(run, seeds, axis, cost) for run in (claim.run, claim.against)]
            told = effect_of((pair[0] - pair[1]) @ weights)
            found = {"axis": axis, "cost": cost, "verdict": verdict(told, claim.sign)}
            rows.append(claim._asdict() | told._asdict() | found)
    return pd.DataFrame(rows).rename(columns={"words": "claim", "value": "effect"})


def verdict(effect: Effect, sign: int) -> str:
    """What an interval says of a claim, in words."""
    if math.isnan(effect.low):
        return "one seed: no interval"
    side = (effect.low > 0) - (effect.high < 0)
    if not sign:
        return {1: "above", -1: "below", 0: "no difference seen"}[side]
    return {sign: "holds", -sign: "the other way", 0: "not seen"}[side]


def _effects(points: Iterable[tuple[str, float, np.ndarray]]) -> pd.DataFrame:
    """The frame that a course is drawn of: points of a run, a cost and what (R, P) numbers tell."""
    told = ({"run": run, "cost": cost} | effect_of(of)._asdict() for run, cost, of in points)
    return pd.DataFrame(told, columns=COURSE)


def course_frame(study: Study, runs: Sequence[str], axis: str, measure: str) -> pd.DataFrame:
    """A measure of each run over its training; columns run, cost, value, low, high, seeds.

    At each checkpoint, at the mean cost of the seeds.
    """
    weights, points = MEASURES[measure][1](np.array(study.budgets)), []
    for run in runs:
        courses = (zip(*study.course(run, seed, axis), strict=True) for seed in study.runs[run])
        for checkpoint in zip(*courses, strict=False):  # as far as every seed has gone
            costs, values = zip(*checkpoint, strict=True)
            measured = np.stack([each @ weights for each in values])
            points.append((run, float(np.mean(costs)), measured))
    return _effects(points)


def budget_frame(study: Study, runs: Sequence[str], axis: str = "seconds") -> pd.DataFrame:
    """Accuracy over tokens of thinking, a point for each budget, when all runs had spent the same.

    Returns the columns of `course_frame`, of which cost is the mean tokens of a thinking.
    """
    cost = study.shared_cost(runs, axis)
    reached = {run: study.at(run, study.runs[run], axis, cost) for run in runs}
    return _effects(
        (run, np.minimum(values[..., -1], budget).mean(), values[..., j])
        for run, values in reached.items()
        for j, budget in enumerate(study.budgets)
    )


def exit_curves(study: Study, run: str) -> pd.DataFrame:
    """Early exit on a run, beside `budget_frame`'s curves: a point for each setting of a rule.

    At the run's last checkpoint; the interval is over seeds. Settings are matched by their order,
    as those of confidence are not the same in two runs. The summaries that a rule asks for on its
    way are not counted.
    """
    of = study.exits[study.exits["run"] == run]
    places = of.groupby(["seed", "policy"]).cumcount()
    return _effects(
        (f"{run}, {policy}", part["tokens"].mean(), part[["accuracy"]].to_numpy())
        for policy in (AGREEMENT, SURE)
        for _, part in of[of["policy"] == policy].groupby(places)
    )


# What people use today, a panel each, over tokens of thinking.
PANELS = {
    "tokens; length rewards": ("L1", "group length", "DAPO overlong"),
    "tokens; exits and limits": ("S-GRPO", "ThinkPrune to 48"),
    "tokens; GRPO stopped early": ("GRPO, agreement", "GRPO, confidence"),
}


def today_panels(study: Study, seeds: int = 3) -> dict[str, pd.DataFrame]:
    """Methods in use today beside GRPO and AR-uniform, at an equal processor time of training.

    Args:
        seeds: a run with fewer is left out.

    Returns a frame of `budget_frame` and `exit_curves` for each of PANELS.
    """
    both = ("AR-uniform", "GRPO")
    trained = [run for run in (*both, *TODAY.split(", ")) if len(study.runs.get(run, ())) >= seeds]
    told = pd.concat([budget_frame(study, trained), exit_curves(study, "GRPO")])
    return {words: told[told["run"].isin([*both, *runs])] for words, runs in PANELS.items()}


def exit_frame(study: Study, runs: Sequence[str]) -> pd.DataFrame:
    """What early exit adds to the plain curve at equal tokens of thinking (claim j).

    The mean over the settings of a rule that stop between the smallest and the largest budget. The
    summaries that it asks for on its way are not counted. Returns columns run, policy, effect, low,
    high, seeds; the interval is over seeds.
    """
    rows, by_run = [], dict([*study.exits.groupby(["run", "policy"])])
    for run, policy in product(runs, (AGREEMENT, SURE)):
        means = by_run[run, policy].groupby("seed")[["difference"]].mean()
        rows.append({"run": run, "policy": policy} | effect_of(means.to_numpy())._asdict())
    columns = ["run", "policy", "value", "low", "high", "seeds"]
    return pd.DataFrame(rows, columns=columns).rename(columns={"value": "effect"})


def variance_course(study: Study, run: str) -> pd.DataFrame:
    """The share of the return's variance that each baseline left in a run, over its training.

    Mean over the budgets from the second on (at the first, BRPO's is the group's), with its
    interval over seeds; columns run (the baseline), cost (update), value, low, high, seeds.
    """
    of = study.variance[study.variance["run"] == run]
    # The study's budgets are even, where BRPO mixed by tokens is BRPO.
    of = of[~of["baseline"].isin(["none", "brpo_tokens"])]
    of = of[of["budget"] > of["budget"].min()].replace({"baseline": BASELINE_NAMES})
    return _effects(
        (*of_whom, part.groupby("seed")[["ratio"]].mean().to_numpy())
        for of_whom, part in of.groupby(["baseline", "update"], sort=False)
    )


def claim_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The claims for a reader: a row each, with effect (points, or tokens) and verdict per axis."""
    rows: dict[tuple, dict[str, str]] = {}
    for row in frame.to_dict("records"):
        by, unit = (1, " tokens") if row["measure"] == "length" else (100, "")
        effect, low, high = (f"{by * row[key]:+.1f}" for key in ("effect", "low", "high"))
        key = (f"({row['part']})", row["claim"], MEASURES[row["measure"]][0], row["seeds"])
        told = f"{effect}{unit} [{low}, {high}], {row['verdict']}".replace("-", "−")
        rows.setdefault(key, {})[f"at equal {AXES[row['axis']]}"] = told
    names = ["part", "claim", "measure", "seeds"]
    return pd.DataFrame([dict(zip(names, key, strict=True)) | told for key, told in rows.items()])
