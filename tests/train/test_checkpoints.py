"""Checkpoints: a resumed run equals an unbroken one, and no incomplete checkpoint is taken."""

import json
import logging
import shutil
import zlib

import killable
import pytest
import tiny
import torch
from killable import assert_same_checkpoint, lines
from safetensors.torch import load_file

from anytime_lab.store.files import RunFolderError, only_writer
from anytime_lab.train.recording import (
    STATE_FILE,
    checkpoint_to_resume,
    last_complete_checkpoint,
    mark_complete,
    missing_parts,
    read_state,
    whole_checkpoints,
)
from anytime_lab.train.trainer import BRPOTrainer, DivergedError

SCHEDULES = {
    "every step is a boundary": ({"steps_per_generation": None, "max_steps": 4}, 2),
    "two steps a generation": ({"steps_per_generation": 2, "max_steps": 6}, 4),
    "two steps, twice": ({"steps_per_generation": 2, "num_iterations": 2, "max_steps": 8}, 4),
    "two rows a step": (
        {
            "steps_per_generation": 4,
            "gradient_accumulation_steps": 2,
            "per_device_train_batch_size": 4,
            "max_steps": 4,
        },
        2,
    ),
}


@pytest.fixture(scope="module", params=SCHEDULES)
def unbroken(request, tmp_path_factory):
    """A folder of a whole run with all its checkpoints; its settings; a boundary in it."""
    settings, boundary = SCHEDULES[request.param]
    settings = {"save_steps": 1, "save_total_limit": None, **settings}
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    trainer = killable.make_trainer(folder, **settings)
    assert trainer.args.is_generation_boundary(boundary)
    trainer.train()
    return folder, settings, boundary


def test_resuming_where_new_rollouts_begin_is_exact_to_the_last_bit(unbroken, tmp_path):
    folder, settings, boundary = unbroken
    last = f"checkpoint-{settings['max_steps']}"
    run = tmp_path / "run"
    run.mkdir()
    shutil.copytree(folder / f"checkpoint-{boundary}", run / f"checkpoint-{boundary}")
    shutil.copy(folder / "metrics.jsonl", run)  # the killed run was ahead of its checkpoint
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "torn')
    trainer = killable.make_trainer(run, **settings)
    trainer.train(resume_from_checkpoint=True)
    assert_same_checkpoint(folder / last, run / last)
    assert lines(run) == lines(folder)
    assert [line["step"] for line in lines(run)] == list(range(1, settings["max_steps"] + 1))
    before, after = (read_state(f / last)["counters"] for f in (folder, run))
    assert before.keys() == after.keys() >= {"seconds", "cpu_seconds", "total/packed_tokens"}
    assert all(before[name] == after[name] for name in before.keys() - killable.TIMES)


def test_resuming_between_generations_goes_on_and_says_so(tmp_path, caplog):
    run = tmp_path / "run"
    killable.make_trainer(run, save_steps=1, save_total_limit=None, max_steps=3).train()
    with caplog.at_level(logging.WARNING):
        trainer = killable.make_trainer(run, max_steps=4)
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-3"))
    assert "step 3 lies between two generations" in caplog.text
    assert [line["step"] for line in lines(run)] == [1, 2, 3, 4]


def test_a_finished_run_that_is_resumed_changes_nothing(tmp_path):
    run = tmp_path / "run"
    killable.make_trainer(run, max_steps=2).train()
    before = {p: p.read_bytes() for p in run.glob("checkpoint-2/*")} | {0: lines(run)}
    trainer = killable.make_trainer(run, max_steps=2)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 2
    after = {p: p.read_bytes() for p in run.glob("checkpoint-*/*")} | {0: lines(run)}
    assert after == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"learning_rate": 1e-6}, r"learning_rate 0.001 \(now 1e-06\)"),
        ({"budgets": [6], "baseline": "group"}, r"budgets \[3, 6\] \(now \[6\]\), baseline"),
        ({"summary_weighting": "authors"}, r"summary_weighting 'eq10' \(now 'authors'\)"),
        ({"seed": 4}, r"seed 3 \(now 4\)(.|\n)*More max_steps alone goes on"),
    ],
)
def test_going_on_under_other_settings_is_refused(tmp_path, trained, change, says):
    run = shutil.copytree(trained, tmp_path / "run")
    with pytest.raises(RunFolderError, match=says):
        killable.make_trainer(run, max_steps=6, **change).train(resume_from_checkpoint=True)
    assert last_complete_checkpoint(run) == str(run / "checkpoint-4")


# --- which checkpoint is whole -------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    killable.make_trainer(folder, max_steps=4, save_total_limit=None).train()
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def test_a_whole_checkpoint_lacks_nothing_and_lists_its_files(trained):
    last = trained / "checkpoint-4"
    assert missing_parts(last) == []
    assert last_complete_checkpoint(trained) == str(last)
    listed = read_state(last)["files"]
    present = {
        p.name: [p.stat().st_size, zlib.crc32(p.read_bytes())]
        for p in last.iterdir()
        if p.name != STATE_FILE
    }
    assert listed == present


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth"])
def test_flipped_bytes_are_named_and_the_checkpoint_before_is_taken(copy, name):
    path = copy / "checkpoint-4" / name
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 5):
        content[place] ^= 0xFF
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=f"checkpoint-4 is passed over: {name}"):
        found = last_complete_checkpoint(copy)
    assert found is not None and found != str(copy / "checkpoint-4")
    with pytest.warns(UserWarning, match="checkpoint-4 is passed over"):
        whole = list(whole_checkpoints(copy))
    steps = [int(path.name[11:]) for path in copy.glob("checkpoint-*")]
    left = sorted({*steps} - {4}, reverse=True)
    assert whole == [str(copy / f"checkpoint-{step}") for step in left]
    with pytest.raises(ValueError, match=f"{name} missing or damaged"):
        checkpoint_to_resume(copy, str(copy / "checkpoint-4"))


def test_a_damaged_manifest_tells_a_way_on_that_works(copy):
    (copy / "training.json").write_text('{"settings": ')
    with pytest.raises(RunFolderError, match="training.json cannot(.|\n)*Delete it and go on"):
        killable.make_trainer(copy, max_steps=5).train(resume_from_checkpoint=True)
    (copy / "training.json").unlink()
    killable.make_trainer(copy, max_steps=5).train(resume_from_checkpoint=True)
    (session,) = json.loads((copy / "training.json").read_text())["sessions"]
    assert session["resumed_from"].endswith("checkpoint-4")
    assert [line["step"] for line in lines(copy)] == [1, 2, 3, 4, 5]


def test_a_run_that_is_begun_anew_in_its_folder_says_so(tmp_path, caplog):
    killable.make_trainer(tmp_path, max_steps=1, save_strategy="no").train()
    assert "begun anew" not in caplog.text and last_complete_checkpoint(tmp_path) is None
    killable.make_trainer(tmp_path, max_steps=1).train()
    assert f"{tmp_path} holds a run, which is begun anew" in caplog.text


def test_a_second_training_in_a_folder_is_told_at_once(copy):
    with only_writer(copy), pytest.raises(RunFolderError, match="another run writes into"):
        killable.make_trainer(copy, max_steps=5).train()


def test_another_model_or_an_adapter_is_refused_by_name(copy):
    other = killable.make_trainer(copy, max_steps=5)
    other.model.config._name_or_path = "some/other"
    with pytest.raises(RunFolderError, match="some/other"):
        other.train(resume_from_checkpoint=True)


def test_a_run_that_diverges_stops_with_its_last_checkpoint_whole(tmp_path):
    trainer = killable.make_trainer(tmp_path / "run", max_steps=4)
    inner, calls = trainer.compute_loss, []

    def compute_loss(*args, **kwargs):
        calls.append(1)
        loss = inner(*args, **kwargs)
        return loss if trainer.state.global_step < 2 else loss * float("nan")

    trainer.compute_loss = compute_loss
    says = "diverged: the loss is nan at update 3(.|\n)*checkpoint"
    with pytest.raises(DivergedError, match=says):
        trainer.train()
    last = last_complete_checkpoint(tmp_path / "run")
    assert last == str(tmp_path / "run" / "checkpoint-2")
    weights = load_file(f"{last}/model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())


def test_an_interrupt_ends_in_one_sentence(tmp_path):
    trainer = killable.make_trainer(tmp_path / "run", max_steps=4)

    def compute_loss(*args, **kwargs):
        raise KeyboardInterrupt

    trainer.compute_loss = compute_loss
    with pytest.raises(KeyboardInterrupt) as stopped:
        trainer.train()
    (said,) = stopped.value._render_traceback_()
    assert said == ("stopped at update 0; run the same again to go on from the last checkpoint.")


def names(folder="checkpoint-4"):
    return ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth",
            "trainer_state.json", "config.json", STATE_FILE]  # fmt: skip


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("how", ["absent", "empty", "cut"])
def test_a_checkpoint_without_a_part_is_passed_over(copy, name, how):
    path = copy / "checkpoint-4" / name
    content = path.read_bytes()
    path.unlink()
    if how != "absent":
        path.write_bytes(b"" if how == "empty" else content[:-1])
    if name == STATE_FILE and how == "cut":
        path.write_bytes(content[:-3])  # the last newline is no part of it
    assert missing_parts(copy / "checkpoint-4")
    assert last_complete_checkpoint(copy) == str(copy / "checkpoint-2")
    with pytest.raises(ValueError, match="cannot be resumed: .* missing(.|\n)*last_complete"):
        checkpoint_to_resume(copy, str(copy / "checkpoint-4"))
    assert checkpoint_to_resume(copy, True) == str(copy / "checkpoint-2")


def test_a_shard_that_is_not_there_is_missed(copy):
    folder = copy / "checkpoint-4"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"second")
    (folder / "model.safetensors.index.json").write_text("{}")
    mark_complete(folder, {})
    assert missing_parts(folder) == []
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert missing_parts(folder) == ["model-00002-of-00002.safetensors"]


def test_where_there_is_no_checkpoint_the_choice_is_said(tmp_path):
    assert last_complete_checkpoint(tmp_path) is None
    assert checkpoint_to_resume(tmp_path, None) is None
    assert checkpoint_to_resume(tmp_path, False) is None
    with pytest.raises(
        ValueError, match="no complete checkpoint(.|\n)*resume_from_checkpoint=None"
    ):
        checkpoint_to_resume(tmp_path, True)
    with pytest.raises(ValueError, match="cannot be resumed"):
        killable.make_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "none"))


def test_earlier_checkpoints_go_only_once_the_new_one_is_whole(tmp_path, monkeypatch):
    """With save_total_limit=1 the old one is all there is until the last file is written."""
    seen = []

    def mark(checkpoint, state):
        seen.append(sorted(p.name for p in (tmp_path / "run").glob("checkpoint-*")))
        mark_complete(checkpoint, state)

    monkeypatch.setattr("anytime_lab.train.recording.mark_complete", mark)
    trainer = killable.make_trainer(tmp_path / "run")
    trainer.train()
    assert seen == [["checkpoint-2"], ["checkpoint-2", "checkpoint-4"],
                    ["checkpoint-4", "checkpoint-6"]]  # fmt: skip
    assert [p.name for p in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-6"]
    assert trainer.args.save_total_limit == 1


def test_a_checkpoint_that_is_written_again_is_not_whole_meanwhile(copy, monkeypatch):
    """A run that went back to step 2 and was killed while writing step 4 anew."""
    trainer = killable.make_trainer(copy, max_steps=4, save_total_limit=None)

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "_save_rng_state", stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(resume_from_checkpoint=str(copy / "checkpoint-2"))
    assert STATE_FILE in missing_parts(copy / "checkpoint-4")
    assert last_complete_checkpoint(copy) == str(copy / "checkpoint-2")
    told = json.loads((copy / "progress.json").read_text())
    assert told["message"] == "training stopped: interrupted"


def test_weights_in_half_precision_train_and_resume_as_they_were(tmp_path):
    """bf16 parameters, not autocast: as a large model is held."""
    settings = {"max_steps": 4, "save_total_limit": None, "learning_rate": 0.1}
    trainer = killable.make_trainer(tmp_path / "run", dtype=torch.bfloat16, **settings)
    before = {k: v.clone() for k, v in trainer.model.named_parameters()}
    trainer.train()
    assert {v.dtype for v in trainer.model.parameters()} == {torch.bfloat16}
    assert any((v != before[k]).any() for k, v in trainer.model.named_parameters())
    again = killable.make_trainer(tmp_path / "again", dtype=torch.bfloat16, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
    assert_same_checkpoint(tmp_path / "run/checkpoint-4", tmp_path / "again/checkpoint-4")


def test_no_file_of_a_run_holds_a_secret(tmp_path):
    start = tmp_path / "start"
    tiny.model().save_pretrained(start)
    tiny.tokenizer().save_pretrained(start)
    secrets = {"hub_token": "hf_sesame1", "model_init_kwargs": {"token": "hf_sesame2"}}
    config = tiny.config(
        tmp_path / "run", max_steps=1, save_strategy="steps", save_steps=1, **secrets
    )
    trainer = BRPOTrainer(str(start), tiny.digit_reward, config, tiny.problems())
    trainer.train()
    trainer.save_model(str(tmp_path / "run" / "model"))
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"training_args.bin", "training.json", "README.md"} <= {path.name for path in files}
    assert [path.name for path in files if b"sesame" in path.read_bytes()] == []
    assert trainer.args.model_init_kwargs["token"] == "hf_sesame2"  # it still works with them
