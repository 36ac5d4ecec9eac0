"""Every shipped sweep passes its dry run, and the published runs have the published settings."""

from pathlib import Path

import pytest

from anytime_lab.__main__ import main
from anytime_lab.read.told import BENCHMARKS, BUDGETS, DATASETS, PUBLISHED
from anytime_lab.run.notebook import declared_parameters
from anytime_lab.run.sweep import Point, config_of, prepare_sweep
from anytime_lab.train.config import PRESETS, train_config

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_file_passes_its_dry_run(path, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["sweep", str(path), "--dry-run", "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    jobs = prepare_sweep(path, tmp_path / "out").jobs
    assert f"{len(jobs)} runs: {len(jobs)} new" in told
    assert all(job.name in told for job in jobs.values())
    assert not (tmp_path / "out").exists(), "a dry run writes nothing"


def test_the_issues_files_are_shipped():
    assert {path.stem for path in SHIPPED} == {
        "quickstart", "countdown_ablations", "paper_main", "paper_ablations", "paper_7b",
        "paper_16k", "smoke", "lab", "claims", "claims_gcd",
    }  # fmt: skip


def test_the_ablations_are_the_nine_presets(tmp_path):
    sweep = prepare_sweep(ROOT / "experiments/countdown_ablations.yaml", tmp_path)
    assert list(sweep.variants) == list(PRESETS)[:9]  # the paper's
    assert all(len(variant.seeds) == 3 for variant in sweep.variants.values())


def test_the_ablations_are_made_as_the_main_job(tmp_path):
    jobs = prepare_sweep(ROOT / "experiments/countdown_ablations.yaml", tmp_path).jobs
    lab = prepare_sweep(ROOT / "experiments/lab.yaml", tmp_path).jobs
    for step in ("train", "evaluate"):
        job = jobs[Point("grpo", 0, step)]
        ours = {**declared_parameters(job.notebook), **job.parameters}
        theirs = lab[Point("GRPO", 0, step)].parameters
        wanted = {**declared_parameters(job.notebook), **theirs}
        for where in ("output_dir", "model"):
            ours.pop(where), wanted.pop(where)
        assert ours == wanted


# 64 questions x 8 thinkings a generation, an update for each half of them, on 8 processes.
PAPER = {
    "num_generations": 8, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 8,
    "steps_per_generation": 16, "num_train_epochs": 1, "learning_rate": 1e-6, "epsilon": 0.2,
    "max_grad_norm": 1.0, "beta": 0.0, "temperature": 1.0, "max_summary_tokens": 128,
    "loss_length": 10_176,
}  # fmt: skip


def train_jobs(path, out):
    return {p: job for p, job in prepare_sweep(path, out).jobs.items() if p.step == "train"}


@pytest.mark.parametrize("stem", ["paper_main", "paper_ablations"])
def test_training_of_the_published_runs_is_the_presets_own(stem, tmp_path):
    trains = train_jobs(ROOT / f"experiments/{stem}.yaml", tmp_path)
    assert trains
    for place, job in trains.items():
        assert job.needs.processes == 8
        config = config_of({**declared_parameters(job.notebook), **job.parameters})
        wanted = train_config(
            job.parameters["preset"], [2000, 4000, 6000, 8000], **PAPER, output_dir=str(tmp_path)
        )
        ours, theirs = config.to_dict(), wanted.to_dict()
        own = {
            # where it runs and what it logs, and the schedule, of which nothing was published
            "output_dir", "logging_dir", "run_name", "save_steps", "seed", "lr_scheduler_type",
            "warmup_steps", "gradient_checkpointing", "report_to", "logging_steps", "max_steps",
            "thinking_format", "chat_template_kwargs",
        }  # fmt: skip
        if "baseline" in place.variant and place.variant.endswith("baseline"):
            own.add("baseline")
        differ = {key for key in theirs if ours[key] != theirs[key]} - own
        assert not differ, (place, {key: (ours[key], theirs[key]) for key in differ})
        assert config.max_steps == -1 and job.parameters["task"] == "deepscaler"


def test_the_published_numbers_are_those_of_the_method(tmp_path):
    jobs = prepare_sweep(ROOT / "experiments/paper_main.yaml", tmp_path).jobs
    train = jobs[Point("AR-uniform", 0, "train")].parameters
    assert train["budgets"] == [2000, 4000, 6000, 8000]
    assert train["model"] == "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
    settings = train["settings"]
    a_process = settings["per_device_train_batch_size"]
    assert 8 * a_process * settings["steps_per_generation"] == 64 * 8
    assert 8 * a_process * settings["gradient_accumulation_steps"] == 32 * 8
    assert (settings["learning_rate"], settings["epsilon"], settings["temperature"]) == (
        1e-6, 0.2, 1.0,
    )  # fmt: skip
    evaluations = {place: job.parameters for place, job in jobs.items() if place.step != "train"}
    assert {DATASETS[place.step] for place in evaluations} == set(BENCHMARKS)
    assert {place.variant for place in evaluations} == set(PUBLISHED)
    for place, said in evaluations.items():
        assert said["task"] == place.step
        assert said["budgets"] == list(BUDGETS) and len(BUDGETS) == 32
        assert said["num_samples"] == (320 if place.step in ("amc22_23", "aime24") else 80)
        assert said["temperature"] == 0.6 and said["num_problems"] == 0
        if place.variant != "R1-Distill-1.5B":
            assert said["model"] == f"{jobs[Point(place.variant, 0, 'train')].folder}/model"


def test_the_larger_published_runs(tmp_path):
    long = train_jobs(ROOT / "experiments/paper_16k.yaml", tmp_path)
    for job in long.values():
        assert job.parameters["budgets"] == list(range(2000, 16001, 2000))
        settings = job.parameters["settings"]
        rows = 8 * settings["per_device_train_batch_size"]
        assert rows * settings["steps_per_generation"] == 64 * 8
    for job in train_jobs(ROOT / "experiments/paper_7b.yaml", tmp_path).values():
        settings = job.parameters["settings"]
        rows = 8 * settings["per_device_train_batch_size"]
        assert rows * settings["steps_per_generation"] == 128 * 8
        assert settings["num_train_epochs"] == 2
        assert settings["epsilon_high"] > settings["epsilon"] == 0.2
        assert job.parameters["model"].endswith("Qwen-7B")
        assert job.needs.processes == 8
        assert job.needs.accelerate["deepspeed_config"]["zero_stage"] == 3


@pytest.mark.parametrize("tracker", ["trackio", "tensorboard", "wandb", "mlflow"])
def test_tracking_is_one_parameter(tracker, tmp_path):
    text = (ROOT / "experiments/paper_main.yaml").read_text()
    path = tmp_path / "s.yaml"
    path.write_text(text.replace("report_to: none", f"report_to: {tracker}"))
    for job in train_jobs(path, tmp_path).values():
        config = config_of({**declared_parameters(job.notebook), **job.parameters})
        assert config.report_to == [tracker]
