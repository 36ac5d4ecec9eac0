"""The nine presets against the table of the published runs, row by row."""

import pytest

from anytime_lab.train import config as presets
from anytime_lab.train.config import BRPOConfig

BUDGETS = [20, 40, 60, 80]
SETTINGS = {"output_dir": "unused", "report_to": "none"}
BASE, LINEAR, UNIFORM = (0, 0, 0, 1), (0.1, 0.2, 0.3, 0.4), (0.25,) * 4

TABLE = [  # preset, budgets, prior, A, baseline, summaries trained, length penalty
    ("grpo", [80], (1,), 1, "group", "last", None),
    ("grpo_linear", BUDGETS, LINEAR, 1, "group", "last", None),
    ("grpo_decouple", BUDGETS, BASE, 4, "group", "all", None),
    ("grpo_vr", BUDGETS, BASE, 1, "brpo", "last", None),
    ("ar_base", BUDGETS, BASE, 4, "brpo", "all", None),
    ("ar_linear", BUDGETS, LINEAR, 4, "brpo", "all", None),
    ("ar_uniform", BUDGETS, UNIFORM, 4, "brpo", "all", None),
    ("grpo_length_penalty_v1", [80], (1,), 1, "group", "last", "linear"),
    ("grpo_length_penalty_v2", [80], (1,), 1, "group", "last", "group"),
]


@pytest.mark.parametrize("row", TABLE, ids=[row[0] for row in TABLE])
def test_a_preset_is_its_row_of_the_table(row):
    name, budgets, prior, summaries, baseline, trained, penalty = row
    config = presets.by_name(name)(BUDGETS, **SETTINGS)
    assert isinstance(config, BRPOConfig)
    assert config.budgets == budgets
    assert config.budget_prior.weights == pytest.approx(prior)
    assert config.num_summaries == summaries
    assert config.baseline == baseline
    assert config.train_summaries == trained
    assert config.length_penalty == penalty
    if penalty:
        assert config.length_penalty_alpha == 0.2
    uniform = (1 / len(budgets),) * len(budgets)
    last = (0.0,) * (len(budgets) - 1) + (1.0,)
    assert config.summary_weights == pytest.approx(last if trained == "last" else uniform)
    assert (config.beta, config.epsilon, config.scale_rewards) == (0.0, 0.2, "none")


def test_the_table_has_every_preset_once():
    assert [row[0] for row in TABLE] == list(presets.PRESETS)


def test_any_field_can_be_overridden():
    config = presets.ar_uniform(BUDGETS, **SETTINGS, num_summaries=2, prior=[0.7, 0.1, 0.1, 0.1])
    assert (config.num_summaries, config.prior) == (2, [0.7, 0.1, 0.1, 0.1])


def test_an_unknown_preset_is_refused_with_the_names():
    with pytest.raises(ValueError, match="no preset 'ar'; choose one of grpo, "):
        presets.by_name("ar")
    with pytest.raises(ValueError, match="no preset 'Prior'"):
        presets.by_name("Prior")


def test_wrong_budgets_are_refused_by_a_preset_too():
    with pytest.raises(ValueError, match="increas"):
        presets.ar_uniform([40, 20], **SETTINGS)
    with pytest.raises(ValueError, match="empty"):
        presets.grpo([], **SETTINGS)
    with pytest.raises(ValueError, match="increas"):
        presets.grpo([40, 20], **SETTINGS)  # also where only the largest is taken


@pytest.mark.parametrize("budgets", [None, 24, "24"])
@pytest.mark.parametrize("name", ["grpo", "ar_uniform", "grpo_length_penalty_v2"])
def test_budgets_that_are_no_list_are_told_in_a_sentence(name, budgets):
    with pytest.raises(TypeError, match=f"budgets is {budgets!r}; expected a list of tokens"):
        presets.by_name(name)(budgets, **SETTINGS)


@pytest.mark.parametrize(("processes", "rows"), [(8, 4), (8, 32), (1, 8), (4, 16)])
def test_the_published_settings_are_64_questions_and_updates_of_32(processes, rows, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    settings = presets.paper_1_5b(processes, rows)
    per_step = processes * rows
    assert settings["steps_per_generation"] * per_step == 64 * 8
    assert settings["gradient_accumulation_steps"] * per_step == 32 * 8


def test_the_published_settings_go_into_a_preset():
    config = presets.ar_uniform(
        presets.PAPER_BUDGETS, **presets.paper_1_5b(num_processes=1), **SETTINGS
    )
    assert config.generation_batch_size == 512
    assert config.max_completion_length == 10_176
    assert (config.budgets, config.num_train_epochs) == ([2000, 4000, 6000, 8000], 1)


def test_published_settings_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="powers of two"):
        presets.paper_1_5b(num_processes=3)
