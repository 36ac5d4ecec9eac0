"""A run of an earlier version, kept as it was written, opens by every reader of today."""

import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anytime_lab.read.credit import (
    METHOD_WORDS,
    credit_frame,
    find_rollouts,
    method_words,
    told_credit,
)
from anytime_lab.read.curves import accuracy_curve
from anytime_lab.read.policies import REPLAY_COLUMNS, fixed_budgets, lay_out, policy_frame
from anytime_lab.read.runs import Tables, ThinkingStore, answer_path, find_evaluations
from anytime_lab.read.training import find_training, read_metrics, training_frame, variance_frame
from anytime_lab.store.files import RECORDS, THINKINGS, RunFolderError
from anytime_lab.store.records import COLUMNS, part_path, read_records, read_thinkings
from anytime_lab.store.rollouts import read_rollouts, rollout_path

OLD = Path(__file__).parents[1] / "data" / "old_run"
BUDGETS = list(range(8, 97, 8))


def test_its_records_and_thinkings_are_read_with_all_columns():
    records = read_records(OLD / "evaluation")
    assert list(records.columns) == [column.name for column in COLUMNS[RECORDS]]
    assert len(records) == 40 * len(BUDGETS) and records["correct"].dtype == bool
    thinkings = read_thinkings(OLD / "evaluation")
    assert (thinkings["token_ends"].map(len) == thinkings["tokens"]).all()


def test_its_curves_and_policies_are_drawn():
    records = read_records(OLD / "evaluation")
    assert accuracy_curve(records)["budget"].tolist() == BUDGETS
    replay = lay_out(read_records(OLD / "evaluation", REPLAY_COLUMNS))
    told = policy_frame(fixed_budgets(replay))
    assert told["accuracy"].tolist() == pytest.approx(accuracy_curve(records)["accuracy"].tolist())


def test_its_problems_are_looked_into():
    (evaluation,), _ = find_evaluations(OLD / "evaluation")
    assert (evaluation.dataset, evaluation.partial) == ("countdown", False)
    tables = Tables()
    tables.read([evaluation])
    assert not tables.complaints
    thinkings = ThinkingStore(evaluation.path)
    problem = next(iter(thinkings.parts))
    thought = thinkings.thought(problem, 0, thinkings.records(problem))
    assert "Reach" in thought.question and thought.characters(thought.tokens) == len(
        thought.thinking
    )
    assert answer_path(thought.records)["budget"].tolist() == BUDGETS


def test_its_training_is_followed():
    metrics = read_metrics(OLD / "training")
    assert set(training_frame({"old": metrics})["measure"]) == {
        "anytime accuracy", "final accuracy", "thinking length",
    }  # fmt: skip
    assert len(variance_frame(metrics))
    (tail,) = find_training(OLD / "training").values()
    assert tail.read() and len(tail.frame()) == len(metrics)


def test_its_rollouts_with_a_column_for_each_baseline_are_read():
    (folder,) = find_rollouts(OLD / "training")[0].values()
    told = read_rollouts(folder, 1)
    assert set(told.baselines) == set(METHOD_WORDS)
    frame = credit_frame(told, told.frame.iloc[0])
    assert frame["budget"].tolist() == list(told.budgets)
    assert "advantage_brpo" in frame and "token" in told_credit(frame, method_words(told))


# --- a column less, a column more ----------------------------------------------------------------


@pytest.fixture
def changed(tmp_path):
    """Rewrites a part of a copy of the old run by what is done to its table."""

    def change(path, how):
        table = how(pq.read_table(OLD / path))
        shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
        pq.write_table(table, tmp_path / path)
        return tmp_path

    return change


RECORDS_PART = Path("evaluation/records/part-00000.parquet")
ROLLOUTS_PART = Path("training/rollouts/step-000001.parquet")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("reason", "category"), ("logprob", "float64"), ("summary_text", None), ("correct", None)],
)
def test_a_column_that_a_part_lacks_is_null(changed, name, kind):
    folder = changed(RECORDS_PART, lambda table: table.drop_columns([name])) / "evaluation"
    told = read_records(folder)
    assert told[name].isna().all() and (kind is None or told[name].dtype == kind)
    assert read_records(folder, ["budget", name]).shape == (480, 2)
    pd.testing.assert_frame_equal(
        told.drop(columns=name), read_records(OLD / "evaluation").drop(columns=name)
    )


def test_parts_of_two_versions_are_one_frame(changed):
    folder = changed(RECORDS_PART, lambda table: table.drop_columns(["reason"])) / "evaluation"
    manifest = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(manifest.replace('"chunks": 1', '"chunks": 2'))
    shutil.copy(OLD / RECORDS_PART, part_path(folder, RECORDS, 1))
    told = read_records(folder)
    assert told["reason"].isna().sum() == 480 and len(told) == 960


@pytest.mark.parametrize("table", [RECORDS, THINKINGS])
def test_a_column_too_many_is_ignored(changed, table):
    part = Path("evaluation") / table / "part-00000.parquet"
    folder = changed(part, lambda t: t.add_column(0, "mood", pa.array(["good"] * t.num_rows)))
    read = read_records if table == RECORDS else read_thinkings
    pd.testing.assert_frame_equal(read(folder / "evaluation"), read(OLD / "evaluation"))


def test_a_part_without_what_tells_rows_apart_is_none(changed):
    folder = changed(RECORDS_PART, lambda table: table.drop_columns(["sample"])) / "evaluation"
    with pytest.raises(RunFolderError, match=r"no column \['sample'\]"):
        read_records(folder, ["budget", "correct"])


def test_a_baseline_that_rollouts_lack_is_missing_and_one_too_many_ignored(changed):
    def change(table):
        names = ["advantage_luck" if n == "advantage_none" else n for n in table.column_names]
        renamed = table.rename_columns(names).replace_schema_metadata(table.schema.metadata)
        return renamed.drop_columns(["returns"])

    told = read_rollouts(changed(ROLLOUTS_PART, change) / "training", 1)
    assert set(told.baselines) == set(METHOD_WORDS) - {"none"}
    frame = credit_frame(told, told.frame.iloc[0])
    assert frame["return"].isna().all() and "advantage_none" not in frame
    assert frame["advantage_grpo"].notna().all()


@pytest.mark.parametrize("place", ["a page", "the name of a column"])
@pytest.mark.parametrize("path", [RECORDS_PART, ROLLOUTS_PART])
def test_a_flipped_byte_is_told(changed, path, place):
    folder = changed(path, lambda table: table)
    pq.write_table(pq.read_table(folder / path), folder / path, write_page_checksum=True)
    raw = bytearray((folder / path).read_bytes())
    footer = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    raw[raw.find(b"scor", footer) if place == "the name of a column" else 60] ^= 1
    (folder / path).write_bytes(raw)
    with pytest.raises(RunFolderError, match="is damaged.*(Delete it|Run the same evaluation)"):
        if path == RECORDS_PART:
            read_records(folder / "evaluation")
        else:
            read_rollouts(folder / "training", 1)
    assert rollout_path(folder / "training", 1).exists()
