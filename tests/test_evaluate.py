"""evaluate(): one thinking per sample, cut at every budget; resumed equals unbroken."""

import json
import os
import shutil
from collections import Counter

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from made_notebooks import run_cells
from peft import LoraConfig, get_peft_model

from anytime_lab.engines.base import Sampling
from anytime_lab.engines.hf import HFEngine
from anytime_lab.engines.load import load_model
from anytime_lab.evaluate import chunk_seed, evaluate, evaluate_each
from anytime_lab.prompts import resolve_tokens
from anytime_lab.read.runs import find_evaluations
from anytime_lab.store.files import (
    RECORDS,
    THINKINGS,
    RunFolderError,
    only_writer,
    read_json,
    write_json,
)
from anytime_lab.store.manifest import describe_rows
from anytime_lab.store.records import (
    COLUMNS,
    finished_chunks,
    part_path,
    read_manifest,
    read_records,
    read_thinkings,
    write_part,
)
from anytime_lab.train.recording import mark_complete
from anytime_lab.verify.verifiers import ExactVerifier, Grade, Verifier

BUDGETS = [4, 8, 12]
PROBLEMS, SAMPLES, SUMMARIES = 5, 2, 2


class Watched(HFEngine):
    """The engine, with what it was asked and what it gave."""

    def sample_trees(self, prompts, budgets, num_summaries, sampling, seed=None, share_cuts=False):
        asked = (list(prompts), list(budgets), seed, share_cuts)
        trees = super().sample_trees(prompts, budgets, num_summaries, sampling, seed, share_cuts)
        self.calls = [*getattr(self, "calls", []), (asked, trees)]
        return trees


class LengthVerifier(Verifier):
    """Scores a text by its characters, so that a random model earns every grade there is.

    The scores are 0, 0.5, 1, and None for some texts.
    """

    name = "length"
    scores = (0.0, 0.5, 1.0, None)

    def grade(self, texts, golds):
        return [Grade(self.scores[sum(map(ord, t)) % 4], t[-3:], "") for t in texts]

    def grade_answers(self, answers, golds):
        raise NotImplementedError  # `grade` takes the whole text


def problems(count=PROBLEMS):
    data = tiny.problems(count)
    return data.add_column("problem_id", [f"p{n}" for n in range(count)])


@pytest.fixture(scope="module")
def parts():
    tok = tiny.tokenizer()
    return tiny.model(tok), tok, resolve_tokens(tok)


def run(parts, folder, *, engine=None, data=None, verifier=None, **settings):
    model, _, tokens = parts
    engine = engine or Watched(model, tokens)
    data = problems() if data is None else data
    defaults = {
        "num_samples": SAMPLES,
        "num_summaries": SUMMARIES,
        "sampling": Sampling(max_summary_tokens=6),
        "batch_size": 4,
        "progress": False,
    }
    budgets = settings.pop("budgets", BUDGETS)
    evaluate(
        engine, data, verifier or LengthVerifier(), budgets, folder,
        **{**defaults, **settings},
    )  # fmt: skip
    return engine


def same_records(first, second):
    pd.testing.assert_frame_equal(read_records(first), read_records(second))
    pd.testing.assert_frame_equal(read_thinkings(first), read_thinkings(second))


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory):
    """An unbroken evaluation: its folder and its engine."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(parts, folder)


# --- what is sampled and written -----------------------------------------------------------------


def test_each_sample_is_one_thinking_cut_at_every_budget(parts, whole):
    folder, engine = whole
    _, tok, tokens = parts
    asked = [prompt for (prompts, *_), _ in engine.calls for prompt in prompts]
    assert len(asked) == PROBLEMS * SAMPLES  # once each, not once per budget
    assert all(budgets == BUDGETS and shared for (_, budgets, _, shared), _ in engine.calls)
    trees = [tree for _, trees in engine.calls for tree in trees]
    records, thinkings = read_records(folder), read_thinkings(folder)
    for number, tree in enumerate(trees):
        problem, sample = f"p{number % PROBLEMS}", number // PROBLEMS
        mine = records[(records.problem_id == problem) & (records["sample"] == sample)]
        (thinking,) = thinkings[
            (thinkings.problem_id == problem) & (thinkings["sample"] == sample)
        ].itertuples()
        assert thinking.tokens == len(tree.thinking) == len(thinking.token_ends)
        assert thinking.end == tree.end
        for row, leaf in zip(mine.itertuples(), tree.leaves, strict=True):
            assert row.cut == leaf.cut == min(row.budget, row.thinking_tokens)
            assert row.summary_tokens == len(leaf.summary)
            assert row.logprob == pytest.approx(sum(leaf.logprobs))
            shown = [t for t in leaf.summary if t not in tokens.eos_ids]
            assert row.summary_text == tok.decode(shown)
        for count, end in enumerate(thinking.token_ends, start=1):
            shown = [t for t in tree.thinking[:count] if t not in tokens.eos_ids]
            assert thinking.thinking[:end] == tok.decode(shown)
    assert {tree.end for tree in trees} >= {"length"}


def test_budgets_past_the_end_of_a_thinking_share_their_summaries(whole):
    records = read_records(whole[0])
    ended = records[records.cut < records.budget]
    assert len(ended)
    for _, rows in ended.groupby(["problem_id", "sample", "summary", "cut"], observed=True):
        assert rows.summary_text.nunique() == rows.score.nunique(dropna=False) == 1


def test_rows_are_as_the_schema_says(whole):
    folder, _ = whole
    records = read_records(folder)
    assert list(records.columns) == [column.name for column in COLUMNS["records"]]
    assert list(read_thinkings(folder).columns) == [column.name for column in COLUMNS["thinkings"]]
    keys = records[["problem_id", "sample", "budget", "summary"]].itertuples(index=False)
    expected = Counter(
        (f"p{p}", n, b, s)
        for p in range(PROBLEMS) for n in range(SAMPLES) for b in BUDGETS for s in range(SUMMARIES)
    )  # fmt: skip
    assert Counter(map(tuple, keys)) == expected
    assert set(records.finish) <= {"eos", "length"}
    assert (records.logprob <= 0).all()
    assert (records.thinking_tokens <= BUDGETS[-1]).all()


def test_a_verifier_that_abstains_leaves_the_score_empty_and_nothing_right(whole):
    records = read_records(whole[0])
    assert records.score.isna().any() and (records.score == 0.5).any()
    assert not records[records.score.isna()].correct.any()
    assert (records.correct == (records.score >= 1)).all()  # half right is not right


def test_the_manifest_holds_versions_seeds_prompt_and_sampler(parts, whole):
    manifest = read_manifest(whole[0])
    settings = manifest["settings"]
    assert settings["budgets"] == BUDGETS
    assert settings["seed"] == 0 and settings["num_samples"] == SAMPLES
    assert settings["sampling"]["max_summary_tokens"] == 6
    assert settings["format"]["header"] == parts[2].fmt.header
    assert settings["engine"]["class"] == "Watched"
    assert len(settings["model"]) == 64  # a hash of the weights
    assert manifest["chunks"] == 3
    about, data = manifest["dataset"], problems()
    assert {name: about[name] for name in ("source", "revision", "problems", "sha256")} == {
        "source": "",
        "revision": "",
        "problems": PROBLEMS,
        "sha256": describe_rows(data)["sha256"],
    }
    (session,) = manifest["sessions"]
    assert {"torch", "transformers"} <= session["versions"].keys()
    assert session["tokens"] == sum(read_thinkings(whole[0])["tokens"])
    assert 0 < session["seconds"] < 60


def test_progress_tells_how_far_it_is(whole):
    progress = json.loads((whole[0] / "progress.json").read_text())
    assert (progress["done"], progress["total"]) == (PROBLEMS * SAMPLES,) * 2
    assert progress["message"] == "finished"


def test_chunks_have_seeds_of_their_own(parts, whole, tmp_path):
    folder, engine = whole
    seeds = [seed for (_, _, seed, _), _ in engine.calls]
    assert seeds == [chunk_seed(0, chunk) for chunk in range(3)]
    assert len({chunk_seed(s, c) for s in range(20) for c in range(20)}) == 400
    run(parts, tmp_path / "again")
    same_records(folder, tmp_path / "again")
    run(parts, tmp_path / "other", seed=1)
    first, second = read_thinkings(folder), read_thinkings(tmp_path / "other")
    assert (first.thinking != second.thinking).any()


# --- going on ------------------------------------------------------------------------------------


class StoppedError(Exception):
    pass


def moments():
    """Each write of an evaluation: its name, and whether it is cut short before or after it."""
    writes = ["manifest", *["progress", *["thinkings", "records"]] * 3]
    return [(number, when) for number in range(len(writes)) for when in ("before", "after")]


@pytest.mark.parametrize(("number", "when"), moments())
def test_an_evaluation_stopped_at_any_write_goes_on_to_the_same_records(
    parts, whole, tmp_path, monkeypatch, number, when
):
    """Every file is moved into its place; here one of these moves is the last."""
    count = 0
    inner = os.replace

    def replace(source, target):
        nonlocal count
        count += 1
        if count - 1 != number:
            return inner(source, target)
        if when == "after":
            inner(source, target)
        else:  # what a kill leaves: a part of the file, beside its place
            target.with_name(f"{target.name}.1.tmp").write_bytes(b"PAR1 torn")
        raise StoppedError

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(StoppedError):
        run(parts, tmp_path / "run")
    monkeypatch.undo()
    kept = finished_chunks(tmp_path / "run")
    engine = run(parts, tmp_path / "run")
    assert len(getattr(engine, "calls", [])) == 3 - len(kept)  # nothing finished is done again
    same_records(whole[0], tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_a_finished_evaluation_asks_the_engine_nothing(parts, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    engine = run(parts, tmp_path / "run")
    assert not hasattr(engine, "calls")
    assert len(read_manifest(tmp_path / "run")["sessions"]) == 2


@pytest.mark.parametrize("table", [RECORDS, THINKINGS])
@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign"])
def test_a_damaged_part_is_named_and_made_anew_by_the_same_evaluation(
    parts, whole, tmp_path, table, damage
):
    shutil.copytree(whole[0], tmp_path / "run")
    part = part_path(tmp_path / "run", table, 1)
    raw = bytearray(part.read_bytes())
    raw[40] ^= 0x11
    if damage == "foreign":
        pq.write_table(pa.table({"a": [1]}), part)
    else:
        part.write_bytes(raw if damage == "flipped" else raw[:100])
    read = read_records if table == RECORDS else read_thinkings
    with pytest.raises(RunFolderError, match="part-00001.*Run the same evaluation again"):
        read(tmp_path / "run")
    with pytest.warns(UserWarning, match="part-00001.*It is written anew"):
        engine = run(parts, tmp_path / "run")
    assert len(engine.calls) == 1
    same_records(whole[0], tmp_path / "run")


@pytest.mark.parametrize("sessions", [None, [], "x", [{"versions": 1}, 3]])
def test_a_manifest_that_lost_its_sessions_goes_on(parts, whole, tmp_path, sessions):
    shutil.copytree(whole[0], tmp_path / "run")
    path = tmp_path / "run" / "manifest.json"
    write_json(path, read_json(path) | {"sessions": sessions})
    run(parts, tmp_path / "run")
    assert len(read_manifest(tmp_path / "run")["sessions"]) == 1
    same_records(whole[0], tmp_path / "run")


CHANGES = [
    ({"seed": 7}, "seed: 0 there, 7 now"),
    ({"num_samples": 3}, "num_samples"),
    ({"budgets": [4, 8, 16]}, "budgets"),
    ({"batch_size": 5}, "batch_size"),
    ({"sampling": Sampling(temperature=0.5, max_summary_tokens=6)}, "sampling"),
    ({"verifier": ExactVerifier()}, "verifier"),
    ({"data": problems(4)}, "dataset"),
]


@pytest.mark.parametrize(("change", "says"), CHANGES)
def test_a_folder_with_other_settings_is_refused_and_stays(parts, whole, tmp_path, change, says):
    shutil.copytree(whole[0], tmp_path / "run")
    with pytest.raises(RunFolderError, match=f"other settings .*{says}(.|\n)*delete this one"):
        run(parts, tmp_path / "run", **change)
    same_records(whole[0], tmp_path / "run")


def test_other_weights_are_other_settings(parts, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    _, tok, tokens = parts
    with pytest.raises(RunFolderError, match="model: "):
        run(parts, tmp_path / "run", engine=Watched(tiny.model(tok, seed=1), tokens))


def test_records_without_a_manifest_are_not_taken_over(parts, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    (tmp_path / "run/manifest.json").unlink()
    with pytest.raises(RunFolderError, match="nobody knows how they were made"):
        run(parts, tmp_path / "run")


def test_other_versions_are_said_and_kept_apart(parts, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    manifest = read_manifest(tmp_path / "run")
    manifest["sessions"][0]["versions"]["torch"] = "1.0"
    (tmp_path / "run/manifest.json").write_text(json.dumps(manifest))
    with pytest.warns(UserWarning, match="torch 1.0 → "):
        run(parts, tmp_path / "run")
    assert len(read_manifest(tmp_path / "run")["sessions"]) == 2


# --- what is refused before any work -------------------------------------------------------------


def renamed(data, **columns):
    for old, new in columns.items():
        data = data.rename_column(old, new)
    return data


WRONG = [
    ({"budgets": []}, "budgets is empty"),
    ({"budgets": [8, 4]}, "Sort them, shortest first"),
    ({"budgets": [4, 4]}, "increase"),
    ({"budgets": [0, 4]}, "must be 1 or more"),
    ({"budgets": [4.5, 8]}, "whole tokens"),
    ({"budgets": 16}, "budgets is 16; expected a list"),
    ({"seed": "0"}, "seed is '0'; expected a whole number"),
    ({"sampling": {"temperature": 1.0}}, "expected Sampling"),
    ({"engine": "hf"}, "engine is 'hf'; expected an engine"),
    ({"verifier": ExactVerifier}, "expected load_task.*verifier"),
    ({"data": [{"prompt": "x"}]}, "expected load_task.*problems"),
    ({"num_samples": 0}, "num_samples is 0; expected a whole number above 0"),
    ({"num_summaries": 1.5}, "num_summaries"),
    ({"num_samples": True}, "num_samples"),
    ({"batch_size": 0}, "batch_size"),
    ({"budgets": [4, 2000]}, "context is 1024 tokens(.|\n)*Lower the largest budget to"),
    ({"data": problems(2).select([])}, "the dataset is empty"),
    ({"data": problems().remove_columns("answer")}, "no column 'answer'(.|\n)*rename_column"),
    ({"data": problems().remove_columns("problem_id")}, "no column 'problem_id'"),
    ({"data": renamed(problems(), prompt="question")}, "no column 'prompt'(.|\n)*rename_column"),
    ({"data": problems(2).map(lambda _: {"problem_id": "same"})}, "which an earlier row has"),
]


@pytest.mark.parametrize(("change", "says"), WRONG)
def test_what_cannot_be_evaluated_is_refused_before_any_work(parts, tmp_path, change, says):
    with pytest.raises((TypeError, ValueError), match=says):
        run(parts, tmp_path / "run", **change)
    assert not (tmp_path / "run").exists()


def test_an_engine_or_verifier_that_loses_rows_is_caught(parts, tmp_path):
    class Short(Watched):
        def sample_trees(self, *args, **kwargs):
            return super().sample_trees(*args, **kwargs)[1:]

    class Silent(LengthVerifier):
        def grade(self, texts, golds):
            return super().grade(texts, golds)[1:]

    model, _, tokens = parts
    with pytest.raises(ValueError, match="shorter"):
        run(parts, tmp_path / "a", engine=Short(model, tokens))
    with pytest.raises(RuntimeError, match="one each is due"):
        run(parts, tmp_path / "b", verifier=Silent())
    assert not finished_chunks(tmp_path / "a") | finished_chunks(tmp_path / "b")


def test_equal_texts_are_graded_once(parts, tmp_path):
    seen = []

    class Counting(LengthVerifier):
        def grade(self, texts, golds):
            seen.append(len(texts) - len(set(zip(texts, golds, strict=True))))
            return super().grade(texts, golds)

    run(parts, tmp_path / "run", verifier=Counting())
    assert seen == [0, 0, 0]


def test_thinkings_are_written_before_the_records_that_finish_a_chunk(parts, tmp_path, monkeypatch):
    order = []

    def write(run_dir, table, chunk, rows):
        order.append((table, chunk))
        write_part(run_dir, table, chunk, rows)

    monkeypatch.setattr("anytime_lab.store.records.write_part", write)
    run(parts, tmp_path / "run")
    assert order == [(table, chunk) for chunk in range(3) for table in (THINKINGS, RECORDS)]


def test_a_second_evaluation_in_a_folder_is_told_at_once(parts, tmp_path):
    with only_writer(tmp_path / "run"), pytest.raises(RunFolderError, match="another run writes"):
        run(parts, tmp_path / "run")
    run(parts, tmp_path / "run")


def test_the_home_folder_is_one_place_for_writer_and_reader(parts, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    run(parts, "~/run")
    assert finished_chunks(tmp_path / "home" / "run") and not list((tmp_path / "work").iterdir())
    run(parts, "../home/run")  # the same folder, finished


# --- several models ------------------------------------------------------------------------------


def test_several_models_are_evaluated_as_one_by_one_and_resumed(parts, whole, tmp_path):
    _, tok, tokens = parts
    settings = {"num_samples": SAMPLES, "num_summaries": SUMMARIES, "batch_size": 4}
    settings["sampling"] = Sampling(max_summary_tokens=6)
    loaded = []

    def load(name):
        loaded.append(Watched(tiny.model(tok, seed=int(name)), tokens))
        return loaded[-1]

    def broken(name):
        if name == "1":
            raise StoppedError
        return load(name)

    models = {str(tmp_path / f"checkpoint-{n + 1}"): str(n) for n in range(2)}
    given = (problems(), LengthVerifier(), BUDGETS)
    with pytest.raises(StoppedError):
        evaluate_each(models, broken, *given, **settings)
    folders = evaluate_each(models, load, *given, **settings)
    assert folders == [tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"]
    assert [len(getattr(engine, "calls", [])) for engine in loaded] == [3, 0, 3]
    same_records(whole[0], folders[0])
    run(parts, tmp_path / "alone", engine=Watched(tiny.model(tok, seed=1), tokens))
    same_records(tmp_path / "alone", folders[1])
    assert {e.step for e in find_evaluations(tmp_path)[0]} == {1, 2, None}
    with pytest.raises(ValueError, match="no model to evaluate(.|\n)*whole checkpoint-N"):
        evaluate_each({}, load, *given)


@pytest.mark.slow
def test_the_notebook_evaluates_every_checkpoint_of_an_adapters_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train, out = tmp_path / "train", tmp_path / "out"
    model = get_peft_model(load_model("embedded"), LoraConfig(r=2, target_modules=["q_proj"]))
    for step in (9, 10):
        model.save_pretrained(train / f"checkpoint-{step}")
        mark_complete(train / f"checkpoint-{step}", {})
    (train / "checkpoint-11").mkdir()  # begun, not whole
    asked = {"model": str(train), "checkpoints": True, "budgets": [4, 8], "output_dir": str(out)}
    asked |= {"num_problems": 6, "num_samples": 1}
    room = run_cells("03_evaluate", asked)
    found, _ = find_evaluations(out)
    assert sorted((e.step, e.partial) for e in found) == [(9, False), (10, False)]
    assert all(len(read_records(e.path)) == 12 for e in found)
    told = room["told_table"](room["summary_table"](room["tables"]))
    assert told["run"].tolist() == ["checkpoint-9", "checkpoint-10"]
