"""The presets against the table of the published runs, row by row, and others' to compare with."""

import pytest

from anytime_lab.train.config import PRESETS, BRPOConfig, train_config

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
    ("grpo_overlong", [80], (1,), 1, "group", "last", "overlong"),
    ("think_prune", [80], (1,), 1, "group", "last", "limit"),
    ("s_grpo", BUDGETS, UNIFORM, 1, "serial", "all", "decay"),
]


@pytest.mark.parametrize("row", TABLE, ids=[row[0] for row in TABLE])
def test_a_preset_is_its_row_of_the_table(row):
    name, budgets, prior, summaries, baseline, trained, penalty = row
    config = train_config(name, BUDGETS, **SETTINGS)
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
    assert [row[0] for row in TABLE] == list(PRESETS)


def test_any_field_can_be_overridden():
    config = train_config(
        "ar_uniform", BUDGETS, **SETTINGS, num_summaries=2, prior=[0.7, 0.1, 0.1, 0.1]
    )
    assert (config.num_summaries, config.prior) == (2, [0.7, 0.1, 0.1, 0.1])


def test_an_unknown_preset_is_refused_with_the_names():
    with pytest.raises(ValueError, match="no preset 'ar'; choose one of grpo, "):
        train_config("ar", BUDGETS, **SETTINGS)


def test_wrong_budgets_are_refused_by_a_preset_too():
    with pytest.raises(ValueError, match="increas"):
        train_config("ar_uniform", [40, 20], **SETTINGS)
    with pytest.raises(ValueError, match="empty"):
        train_config("grpo", [], **SETTINGS)
    with pytest.raises(ValueError, match="increas"):
        train_config("grpo", [40, 20], **SETTINGS)  # also where only the largest is taken


@pytest.mark.parametrize("budgets", [None, 24, "24"])
@pytest.mark.parametrize("name", ["grpo", "ar_uniform", "grpo_length_penalty_v2"])
def test_budgets_that_are_no_list_are_told_in_a_sentence(name, budgets):
    with pytest.raises(TypeError, match=f"budgets is {budgets}; expected a list of tokens"):
        train_config(name, budgets, **SETTINGS)


# problems, thinkings, rows a batch, processes -> rows, batches of one process in an update
BATCHES = [
    (12, 8, 24, 1, 24, 4),
    (5, 8, 24, 1, 20, 2),
    (5, 2, 4, 1, 2, 5),
    (7, 2, 4, 1, 2, 7),
    (1, 8, 24, 1, 8, 1),
    (32, 8, 4, 8, 4, 8),
    (6, 2, 4, 2, 3, 2),
]


@pytest.mark.parametrize(("problems", "group", "most", "processes", "rows", "steps"), BATCHES)
@pytest.mark.filterwarnings("ignore:problems_per_step")
def test_so_many_problems_an_update_are_used_exactly(
    problems, group, most, processes, rows, steps, monkeypatch
):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    config = train_config(
        "grpo", BUDGETS, **SETTINGS,
        problems_per_step=problems, num_generations=group, rows_per_batch=most,
    )  # fmt: skip
    found = config.per_device_train_batch_size, config.gradient_accumulation_steps
    assert found == (rows, steps)
    assert rows * steps * processes == problems * group


def test_rows_that_do_not_divide_are_told():
    with pytest.warns(UserWarning, match="5 x num_generations=8 are 40(.|\n)*batches of 20"):
        train_config("grpo", BUDGETS, **SETTINGS, problems_per_step=5, rows_per_batch=24)


@pytest.mark.parametrize("wrong", [{"problems_per_step": 0}, {"rows_per_batch": -1}])
def test_batches_that_make_no_sense_are_refused_in_the_notebooks_words(wrong):
    given = {"problems_per_step": 12, "num_generations": 8, "rows_per_batch": 24, **wrong}
    with pytest.raises(ValueError, match="problems_per_step=(.|\n)*rows_per_batch="):
        train_config("grpo", BUDGETS, **SETTINGS, **given)


def test_parameters_that_arrive_as_text_are_read():
    config = train_config(
        "ar_uniform", "[24, 48]", **SETTINGS, max_steps="3", learning_rate="3e-4",
        problems_per_step="3", num_generations="2", rows_per_batch="6",
        settings='{"weight_decay": "0.1", "num_summaries": 2}',
    )  # fmt: skip
    assert (config.budgets, config.max_steps, config.learning_rate) == ([24, 48], 3, 3e-4)
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == (6, 1)
    assert (config.weight_decay, config.num_summaries) == (0.1, 2)


def test_settings_win():
    config = train_config("grpo", BUDGETS, **SETTINGS, max_steps=5, settings={"max_steps": 7})
    assert config.max_steps == 7
    with pytest.raises(ValueError, match="Give a dict of fields"):
        train_config("grpo", BUDGETS, **SETTINGS, settings="[1]")
