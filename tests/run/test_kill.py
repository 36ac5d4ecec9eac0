"""SIGKILL at random moments, full disks and folders that cannot be written: nothing is lost."""

import contextlib
import os
import random
import shutil
import subprocess
import time

import killable
import pandas as pd
import pyarrow.parquet as pq
import pytest
from killable import assert_same_checkpoint, lines

from anytime_lab.store.files import RECORDS, THINKINGS, RunFolderError, append_jsonl, read_jsonl
from anytime_lab.store.records import finished_chunks, part_path, read_records, read_thinkings
from anytime_lab.train.recording import last_complete_checkpoint, missing_parts, read_state

KILLS = 10


def unbroken(job, folder):
    """Run a job to its end twice; returns the seconds of the second, when all is loaded."""
    finish(job, folder.with_name("first"))
    return finish(job, folder)


def finish(job, folder):
    """Run a job to its end; returns the seconds it took."""
    started = time.perf_counter()
    process = killable.forks().Process(target=job, args=(folder,))
    process.start()
    process.join()
    log = folder.with_name(f"{folder.name}.log")
    assert process.exitcode == 0, log.read_text()[-2000:]
    return time.perf_counter() - started


def killed(job, folder, seconds, at=None):
    """Kill a job with SIGKILL after some seconds, or as soon as something happens in its folder.

    Args:
        at: a pattern of paths; the appearance of a new one is the moment.

    Returns:
        Whether it was still running.
    """
    before = set(folder.glob(at)) if at else set()
    process = killable.forks().Process(target=job, args=(folder,))
    process.start()
    deadline = time.perf_counter() + seconds
    while process.exitcode is None and time.perf_counter() < deadline:
        if at and set(folder.glob(at)) - before:
            time.sleep(random.uniform(0, 0.02))
            break
        time.sleep(0.001)
    process.kill()
    process.join()
    return process.exitcode != 0


def check_checkpoints(folder):
    """Every checkpoint that counts as whole can be read, and no line is torn or doubled."""
    last = last_complete_checkpoint(folder)
    if last is not None:
        import torch
        from safetensors.torch import load_file

        assert not missing_parts(last)
        assert load_file(f"{last}/model.safetensors")
        assert torch.load(f"{last}/optimizer.pt")["state"]
        assert read_state(last)["counters"]
    steps = [row["step"] for row in read_jsonl(folder / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.slow
def test_a_trainer_killed_ten_times_ends_as_an_unbroken_one(tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    length = unbroken(killable.train, whole)
    random.seed(int(length * 1e6))  # another set of moments each time
    kills = runs = held = 0
    while kills < KILLS or (kills < 5 * KILLS and not held and not runs):
        at = "checkpoint-*" if kills % 2 else None  # half of them while a checkpoint is written
        if killed(killable.train, run, random.uniform(0.1, 1.0) * length, at):
            kills += 1
            check_checkpoints(run)
            held = max(held, kills and len(list(run.glob("checkpoint-*/brpo_state.json"))))
        else:  # it got to its end between two kills
            assert_same_run(whole, run)
            runs += 1
            shutil.rmtree(run)
    finish(killable.train, run)
    assert_same_run(whole, run)
    assert held or runs  # kills fell on runs that had something to lose


def assert_same_run(whole, run):
    last = f"checkpoint-{killable.TRAINING['max_steps']}"
    assert_same_checkpoint(whole / last, run / last)
    assert lines(run) == lines(whole)
    assert [p.name for p in run.glob("checkpoint-*")] == [last]  # nothing half-written is left
    assert not list(run.glob("*.tmp"))


@pytest.mark.slow
def test_an_evaluation_killed_ten_times_has_the_records_of_an_unbroken_one(tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    length = unbroken(killable.evaluate_tiny, whole)
    random.seed(int(length * 1e6))
    kills = 0
    while kills < KILLS:
        at = random.choice([None, "records/*", "thinkings/*", "manifest.json*"])
        if killed(killable.evaluate_tiny, run, random.uniform(0.1, 1.0) * length, at):
            kills += 1
            for chunk in finished_chunks(run):  # whole, and with its thinkings
                assert pq.read_table(part_path(run, RECORDS, chunk)).num_rows == 4
                assert pq.read_table(part_path(run, THINKINGS, chunk)).num_rows == 2
        else:
            assert_same_records(whole, run)
            shutil.rmtree(run)
    finish(killable.evaluate_tiny, run)
    assert_same_records(whole, run)
    assert not list(run.rglob("*.tmp"))


def assert_same_records(whole, run):
    records = read_records(run)
    pd.testing.assert_frame_equal(records, read_records(whole))
    pd.testing.assert_frame_equal(read_thinkings(run), read_thinkings(whole))
    assert not records.duplicated(["problem_id", "sample", "budget", "summary"]).any()


# --- disks ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(folder, *options):
    """A small file system of its own; skips the test where mounting is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder, left):
    """Leave some bytes of a disk free."""
    free = shutil.disk_usage(folder).free
    with open(folder / "filler", "wb") as file:
        file.write(b"0" * max(0, free - left))


def test_a_full_disk_stops_training_clearly_and_keeps_the_last_checkpoint(tmp_path):
    killable.make_trainer(tmp_path / "whole").train()
    with mounted(tmp_path / "disk", "size=4m") as disk:
        run = disk / "run"
        killable.make_trainer(run, max_steps=2).train()
        fill(disk, 150_000)  # less than the optimizer takes
        with pytest.raises(
            RunFolderError, match="could not write(.|\n)*checkpoint-2 is whole"
        ) as e:
            killable.make_trainer(run).train(resume_from_checkpoint=True)
        assert "once there is space" in str(e.value)
        assert last_complete_checkpoint(run) == str(run / "checkpoint-2")
        assert len(read_jsonl(run / "metrics.jsonl")) >= 2
        (disk / "filler").unlink()
        killable.make_trainer(run).train(resume_from_checkpoint=last_complete_checkpoint(run))
        assert_same_run(tmp_path / "whole", run)


def test_a_full_disk_stops_an_evaluation_clearly_and_it_goes_on(tmp_path):
    finish(killable.evaluate_tiny, tmp_path / "whole")
    with mounted(tmp_path / "disk", "size=200k") as disk:
        shutil.copytree(tmp_path / "whole", disk / "run")
        for table in (RECORDS, THINKINGS):
            for chunk in range(3, 10):
                part_path(disk / "run", table, chunk).unlink()
        before = read_records(disk / "run", allow_partial=True)
        fill(disk, 8_192)
        process = killable.forks().Process(target=killable.evaluate_tiny, args=(disk / "run",))
        process.start()
        process.join()
        assert process.exitcode == 1
        assert (
            "No space left on device. What was written before is intact; free space"
            in (disk / "run.log").read_text() + (tmp_path / "disk/run.log").read_text()
        )
        after = read_records(disk / "run", allow_partial=True)
        pd.testing.assert_frame_equal(after[: len(before)], before)
        (disk / "filler").unlink()
        finish(killable.evaluate_tiny, disk / "run")
        assert_same_records(tmp_path / "whole", disk / "run")


def test_a_line_that_fits_the_disk_in_part_is_not_left_torn(tmp_path):
    with mounted(tmp_path / "disk", "size=16k") as disk:
        path = disk / "metrics.jsonl"
        append_jsonl(path, {"step": 1})
        fill(disk, 0)
        with pytest.raises(RunFolderError, match="No space left on device(.|\n)*free space"):
            append_jsonl(path, {"step": 2, "long": "x" * 5000})
        (disk / "filler").unlink()
        append_jsonl(path, {"step": 2})
        assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("job", ["train", "evaluate"])
def test_a_folder_that_cannot_be_written_stops_at_once_and_stays_as_it_is(tmp_path, job):
    with mounted(tmp_path / "disk", "size=8m") as disk:
        run = disk / "run"
        if job == "train":
            killable.make_trainer(run, max_steps=2).train()
        else:
            finish(killable.evaluate_tiny, run)
            part_path(run, RECORDS, 4).unlink()
        before = {p: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}
        remount = ["mount", "-o", "remount,ro", str(disk)]
        subprocess.run(remount, check=True)
        with pytest.raises(RunFolderError, match="Read-only file system(.|\n)*make the folder"):
            if job == "train":
                killable.make_trainer(run).train(resume_from_checkpoint=True)
            else:
                evaluate_here(run)
        assert {p: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()} == before


def evaluate_here(folder):
    """`evaluate_tiny` in this process, with its output where it is."""
    inner, killable.quiet = killable.quiet, lambda folder: contextlib.nullcontext()
    try:
        killable.evaluate_tiny(folder)
    finally:
        killable.quiet = inner


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_without_permission_stops_at_once(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    run.chmod(0o555)
    with pytest.raises(RunFolderError, match="Permission denied(.|\n)*make the folder writable"):
        evaluate_here(run)
    assert not list(run.iterdir())
