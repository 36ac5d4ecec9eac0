"""Settings of a training run: BRPO's fields beside TRL's, what they must hold, and the presets.

`train_config("ar_uniform", [24, 48, 72, 96], output_dir="runs/ar", learning_rate=3e-4)` is the one
way from the name of a published configuration (BRPO, arXiv 2505.13438) to its settings.
"""

import functools
import inspect
import json
import numbers
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy
import torch
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError
from trl import GRPOConfig

from anytime_lab.priors import Prior, check_budgets
from anytime_lab.train.advantages import BASELINES, PENALTIES, SUMMARY_WEIGHTINGS

# Field → the table that it chooses from.
CHOICES = {
    "summary_weighting": SUMMARY_WEIGHTINGS,
    "baseline": BASELINES,
    "length_penalty": PENALTIES,
}


# Fields that make another run; others (max_steps, saving, logging) may change on the way.
METHOD = (
    "budgets", "prior", "summary_prior", "summary_weighting", "num_summaries", "max_summary_tokens",
    "num_generations", "baseline", "discount", "train_summaries", "length_penalty",
    "length_penalty_alpha", "check_format", "loss_type", "loss_length", "beta", "epsilon",
    "temperature", "num_iterations", "learning_rate", "lr_scheduler_type", "warmup_steps",
    "weight_decay", "max_grad_norm", "seed",
)  # fmt: skip


_adapter = functools.cache(TypeAdapter)


def read_as(name: str, value: Any, wanted: Any, fix: str = "") -> Any:
    """`value` as a type that pydantic knows; numbers and switches are read from text.

    Raises:
        ValueError: it is none; the message says what was found, what is wanted, and the fix.
    """
    try:
        return _adapter(wanted).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"[{at}]" for at in first["loc"] if isinstance(at, int))
        ways = [one["msg"] for one in error.errors() if one["input"] is first["input"]]
        told = " or ".join(re.sub("^(Input should be|Value error,) ", "", way) for way in ways)
        told = told.replace("greater than or equal to", "at least")
        told = told.replace("less than or equal to", "at most")
        found = f"{name}{place} is {first['input']!r}"
        raise ValueError(f"{found}; expected {told}. {fix}".rstrip()) from None


def _no_switch(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number")
    return value


def _from_json(value: Any) -> Any:
    """A list or dict that arrived as its text, as papermill's and shells' quoting makes it."""
    try:
        text = value.strip()
        return json.loads(f"[{text[1:-1]}]" if text.startswith("(") else text)
    except (AttributeError, json.JSONDecodeError):
        return value


def _folder(value: Any) -> Any:
    if value and not Path(str(value)).expanduser().is_dir():
        raise ValueError("a folder that exists")
    return value


_SIMPLE = (int, float, bool, int | None, float | None, bool | None)
_Whole = Annotated[int, BeforeValidator(_no_switch)]
_Number = Annotated[float, BeforeValidator(_no_switch), Field(allow_inf_nan=False)]
_Positive, _AboveNone = Annotated[_Whole, Field(ge=1)], Annotated[_Number, Field(gt=0)]
_NotNegative, _Share = Annotated[_Number, Field(ge=0)], Annotated[_Number, Field(ge=0, le=1)]
_Count = Annotated[_Whole, Field(ge=0)]
_OWN_CACHE = "Trees are sampled with a cache of their own."
# Fields of TRL of which a tree of thinking and summaries takes the default alone, and why.
UNTOUCHED = {
    "mask_truncated_completions":
        "A row is a whole tree; a summary that hit its limit is scored as it stands.",
    "use_transformers_continuous_batching": _OWN_CACHE,
    "use_transformers_paged": _OWN_CACHE,
    "cache_implementation": _OWN_CACHE,
    "use_liger_kernel": "It replaces the forward that runs packed trees.",
    "remove_unused_columns": "It would drop the columns that the rewards grade by.",
    "generation_kwargs": "Set temperature, top_p, top_k or min_p.",
    "off_policy_mask_threshold": "It would mask whole trees by one number.",
    "vllm_structured_outputs_regex": "A thinking and a summary follow no one pattern.",
    "ds3_gather_for_generation":
        "Under ZeRO-3, thinkings that differ in length would have processes wait for ever.",
    "importance_sampling_level": "A sequence would be a whole tree.",
    "multi_objective_aggregation": "Scores are summed and not normalised.",
}  # fmt: skip
# Other fields of TRL, what they must be, and why or the way out.
RULES: tuple[tuple[str, Any, str], ...] = (
    *((name, Literal[getattr(GRPOConfig, name)], why) for name, why in UNTOUCHED.items()),
    (
        "repetition_penalty", Annotated[float, Field(ge=1, le=1)],
        "Sampled log-probs would not be the policy's.",
    ),
    ("vllm_mode", Literal["colocate", "server"], "'colocate' shares the trainer's GPUs."),
    (
        "num_generations", Annotated[_Whole, Field(ge=2)],
        "A thinking is compared with the others of its group: set num_generations=8.",
    ),
    # With these TRL and transformers train nothing or the wrong way, without a word.
    (
        "max_steps", _Positive | Literal[-1],
        "Set a number of updates, or -1 to train for num_train_epochs instead.",
    ),
    ("num_train_epochs", _AboveNone, "Set 1, or max_steps for a number of updates."),
    ("per_device_train_batch_size", _Positive, "Set as many rows as the memory holds."),
    ("gradient_accumulation_steps", _Positive, "Set 1 for one batch an update."),
    ("weight_decay warmup_steps", _NotNegative, "Set 0 for none."),
    (
        "steps_per_generation generation_batch_size num_generations_eval", _Positive | None,
        "Leave it out (None) for the default.",
    ),
    ("num_iterations", _Positive, "Set 1 to use each rollout once."),
    ("epsilon_high", _NotNegative | None, "None takes epsilon."),
    ("delta", _NotNegative | None, "None is off."),
    (
        "top_entropy_quantile", Annotated[_Number, Field(gt=0, le=1)],
        "0 trains no token; 1.0 trains all.",
    ),
    (
        "resume_from_checkpoint", Annotated[Any, AfterValidator(_folder)],
        "Leave it out to begin anew.",
    ),
)  # fmt: skip


@dataclass
class BRPOConfig(GRPOConfig):
    """Settings of one BRPO run: every field of `trl.GRPOConfig`, and those below.

    The defaults are the settings of the published runs (method: BRPO, arXiv 2505.13438):
    no reward scaling, a constant loss length, clip 0.2, no KL. One differs: summaries are weighted
    as the paper's eq. 10 says; the authors' code, and so the published runs, sum them unweighted
    (`summary_weighting="authors"`).

    Differences from TRL's defaults: `loss_type="dr_grpo"`, `scale_rewards="none"`,
    `vllm_importance_sampling_mode="token_truncate"` (TRL's default takes one ratio for a whole
    tree), and `bf16` is off where there is no CUDA device. `max_completion_length` is derived:
    it is the constant that `dr_grpo` divides by, so set `loss_length` to choose it.

    Attributes:
        budgets: Thinking budgets b_1 < ... < b_m in whole tokens, such as [24, 48, 96]. One
            thinking of b_m tokens is sampled and summarised at each of them.
        prior: Probability P_j of each budget; sums to 1. None is uniform. [0, ..., 0, 1] rewards
            the final answer only.
        summary_prior: Weight P'_j of each budget in the summary policy's gradient. None is uniform
            (BRPO eq. 10).
        summary_weighting: Weight of a summary's gradient.
        num_summaries: Summaries sampled for each (thinking, budget): A in the paper.
        baseline: Baseline of the thinking policy.
        discount: Discount of earlier scores in the progress baseline; 0.5 as published.
        train_summaries: 'all' trains the summaries at every budget, as the published
            AnytimeReasoner; 'last' those at the largest only.
        max_summary_tokens: Longest summary in tokens, the forced text (cut suffix and answer
            header) included; 128 as published.
        length_penalty: Shorten thinkings through the score. None is off.
        length_penalty_alpha: Strength of the length penalty, where one is set; 0.2 as published.
        check_format: Score a summary 0, whatever the reward functions say, unless exactly one
            think-end marker stands in its thinking and text. A thinking that ended in EOS then
            scores 0, as in the method.
        thinking_format: How the model writes a thinking: 'auto' (None; what tokenizer and chat
            template say), a name in anytime_lab.prompts.FORMATS, or a dict of fields of
            ThinkingFormat.
        tree_backend: How a packed tree is run. 'auto': the best one that the model supports;
            'segmented': one attention call per budget; 'dense': a 4D mask; 'unrolled': one row per
            summary, any architecture.
        skip_dead_tokens: Leave out of an update what has no gradient: summaries whose advantage is
            0, and a thinking behind its last token with one. The gradient is the same. Not done
            where the loss has a term on every token (beta, an entropy bonus, top_entropy_quantile).
            The logged entropy is then estimated by the log-probs of the sampled tokens.
        rollout_batch_size: Trees sampled at a time on each process. None: the whole generation
            batch.
        save_rollouts_steps: Updates between the rollout trees of two problems that are written to
            output_dir/rollouts, with their advantages under every baseline (and at update 1). 0
            writes none.
        loss_length: Constant number of tokens that the dr_grpo loss divides by. None: budgets[-1] +
            len(budgets) * num_summaries * max_summary_tokens.
        check_logprobs_steps: With use_vllm, compare vLLM's log-probs of the rollouts with the
            trainer's each so many steps (where new rollouts are sampled) and warn where they
            differ. 0 is off.
        logprobs_tolerance: Mean absolute difference of these log-probs, in nats a token, that is
            warned of. Two bf16 implementations differ by about 0.01, two in fp32 by 1e-5.
        loss_type: 'dr_grpo' (as published: sum over trained tokens / constant), 'dapo', 'bnpo',
            'grpo', 'cispo' or 'sapo'.
        scale_rewards: Must be 'none' (or False): BRPO never divides by a standard deviation.
        beta: KL coefficient; 0 loads no reference model.
        epsilon: Clip range of the importance ratio; 0.2 as published.
        temperature: Sampling temperature of the rollouts; the policy itself at 1.0, so set 1.0.
        max_grad_norm: Largest gradient norm; 0 does not clip.
        learning_rate: Initial learning rate of AdamW; 1e-6 as published, small models take 3e-4.
        max_completion_length: Derived from budgets, num_summaries and max_summary_tokens, or
            loss_length.
        vllm_importance_sampling_mode: Must be 'token_truncate': a ratio per sequence would be one
            for a whole tree.
    """

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "thinking_format"]

    budgets: list[_Whole] = field(default_factory=lambda: [2000, 4000, 6000, 8000])
    prior: list[_Number] | None = None
    summary_prior: list[_Number] | None = None
    summary_weighting: Literal[*SUMMARY_WEIGHTINGS] = "eq10"
    num_summaries: _Positive = 4
    baseline: Literal[*BASELINES] = "brpo"
    discount: _Share = 0.5
    train_summaries: Literal["all", "last"] = "all"
    max_summary_tokens: Annotated[_Whole, Field(ge=2)] = 128
    length_penalty: Literal[*PENALTIES] | None = None
    length_penalty_alpha: _Share = 0.2
    check_format: bool = True
    thinking_format: dict | str | None = None
    tree_backend: Literal["auto", "segmented", "dense", "unrolled"] = "auto"
    skip_dead_tokens: bool = True
    rollout_batch_size: _Positive | None = None
    save_rollouts_steps: _Count = 25
    loss_length: _Positive | None = None
    check_logprobs_steps: _Count = 1
    logprobs_tolerance: _NotNegative = 0.05
    # TRL's fields with the method's defaults (method section 7).
    loss_type: Literal["dr_grpo", "dapo", "bnpo", "grpo", "cispo", "sapo"] = "dr_grpo"
    scale_rewards: Literal["none"] = "none"
    beta: _NotNegative = 0.0
    epsilon: _NotNegative = 0.2
    temperature: _AboveNone = 1.0
    max_grad_norm: _NotNegative = 1.0
    learning_rate: _AboveNone = 1e-6
    max_completion_length: int | None = None
    vllm_importance_sampling_mode: Literal["token_truncate"] = "token_truncate"

    def __post_init__(self) -> None:
        if self.output_dir is not None:
            self.output_dir = os.path.expanduser(self.output_dir)
        if self.scale_rewards is False:
            self.scale_rewards = "none"
        self._read_fields()
        self._check_together()
        leaves = len(self.budgets) * self.num_summaries
        length = self.loss_length or self.budgets[-1] + leaves * self.max_summary_tokens
        if self.max_completion_length not in (None, length):
            raise ValueError(
                f"max_completion_length is {self.max_completion_length}, but here it is derived "
                f"({length}): the length of a thinking is budgets[-1], of a summary "
                "max_summary_tokens. "
                "Leave it out; set loss_length to choose the constant that the loss divides by."
            )
        self.max_completion_length = length
        if not torch.cuda.is_available():
            # bf16 autocast gains nothing on a small model on CPU and breaks exact comparisons.
            self.bf16 = bool(self.bf16)
            self.dataloader_pin_memory = False  # it would only warn
        if self.steps_per_generation is not None:  # both are in `to_dict()`, and TRL refuses both
            rows = self.per_device_train_batch_size * _processes() * self.steps_per_generation
            if self.generation_batch_size == rows:
                self.generation_batch_size = None
        super().__post_init__()

    def _read_fields(self) -> None:
        """Read every field as its type (of text, as YAML makes it, too), then by `RULES`."""
        for item in fields(self):
            value, told = getattr(self, item.name), item.metadata.get("help", "")
            if item.name in BRPOConfig.__annotations__:
                wanted = BRPOConfig.__annotations__[item.name]
                setattr(self, item.name, read_as(item.name, _from_json(value), wanted, told))
            elif value is None and item.default is None:
                continue  # HfArgumentParser has taken the None out of the types
            elif item.type in _SIMPLE and not isinstance(value, (numbers.Real, numpy.bool_)):
                setattr(self, item.name, read_as(item.name, value, item.type))
        for names, wanted, fix in RULES:
            for name in names.split():
                setattr(self, name, read_as(name, getattr(self, name), wanted, fix))

    def _check_together(self) -> None:
        """Check fields that must go together."""
        check_budgets(self.budgets)
        for name in ("prior", "summary_prior"):
            self.weights(name)  # refuses what is none
        if self.baseline == "serial" and len(self.budgets) == 1:
            raise ValueError(
                f"baseline='serial' compares a thinking's budgets, but budgets is {self.budgets}: "
                "nothing would be trained. Set more of them, or another baseline."
            )
        for name, value, does, way in (
            ("train_summaries", "last", "trains the last budget only", "all"),
            ("summary_weighting", "authors", "weights every summary alike", "eq10"),
        ):
            if getattr(self, name) == value and self.summary_prior is not None:
                raise ValueError(
                    f"summary_prior is set, but {name}={value!r} {does}. Set {name}={way!r}, or "
                    "leave summary_prior out."
                )
        truncated = [
            f"{name}={getattr(self, name)}"
            for name, neutral in (("top_p", (1.0,)), ("top_k", (0, None)), ("min_p", (0, None)))
            if getattr(self, name) not in neutral
        ]
        steps = self.steps_per_generation or self.gradient_accumulation_steps
        reused = self.num_iterations > 1 or steps > self.gradient_accumulation_steps
        whole, way = "", ""
        if self.use_vllm and self.vllm_importance_sampling_correction:
            whole = "the correction of vLLM's log-probs takes the policy's whole one"
            way = "vllm_importance_sampling_correction=False"
        elif reused or self.generation_batch_size is not None:
            whole = "the importance ratios of reused rollouts are taken from the whole one"
            way = (
                "use each rollout once (num_iterations=1, steps_per_generation and "
                "generation_batch_size left out)"
            )
        if truncated and whole:
            raise ValueError(
                f"{', '.join(truncated)} samples from a truncated distribution, while {whole}. Set "
                f"top_p=1.0, top_k=0 and min_p=None, or {way}."
            )

    def weights(self, name: str) -> Prior:
        """`prior` or `summary_prior` as a value; uniform where it is None."""
        if (weights := getattr(self, name)) is None:
            return Prior.uniform(self.budgets)
        try:
            return Prior(self.budgets, weights)
        except ValueError as error:
            raise ValueError(f"{name} is {weights}: {error}") from None

    @property
    def budget_prior(self) -> Prior:
        """P_j as a value."""
        return self.weights("prior")

    @property
    def summary_weights(self) -> tuple[float, ...]:
        """Weight of each budget's summaries in the gradient, (J,)."""
        last = self.train_summaries == "last"
        return (Prior.base(self.budgets) if last else self.weights("summary_prior")).weights

    @property
    def method(self) -> dict[str, Any]:
        """What makes this run this run: the fields of `METHOD`, as they act."""
        return {name: getattr(self, name) for name in METHOD} | {
            "prior": [round(w, 4) for w in self.budget_prior.weights],
            "summary_prior": [round(w, 4) for w in self.summary_weights],
            "loss_length": self.max_completion_length,
            "lr_scheduler_type": str(self.lr_scheduler_type.value),
            "problems_per_generation": self.generation_batch_size // self.num_generations,
        }

    def is_generation_boundary(self, step: int) -> bool:
        """Whether new rollouts follow this optimiser step, so that resuming there is exact."""
        period = self.steps_per_generation * self.num_iterations
        return step * self.gradient_accumulation_steps % period == 0

    def saves_rollouts_at(self, step: int) -> bool:
        """Whether the generation that update `step` begins with is written to the run folder.

        The first one is; then those that serve an update divisible by `save_rollouts_steps`.
        """
        every = self.save_rollouts_steps
        period = self.steps_per_generation * self.num_iterations
        last = step + max(1, period // self.gradient_accumulation_steps) - 1
        return every > 0 and (step == 1 or last // every > (step - 1) // every)


# Each field's help text: its words above, and those of the table that it chooses from.
for _name, _told in re.findall(
    r"^    (\w+): (.+(?:\n        .+)*)", inspect.getdoc(BRPOConfig), re.M
):
    _words = [f"{way!r}: {words}" for way, (words, _) in CHOICES.get(_name, {}).items()]
    _told = " ".join(_told.split()) + f" {'; '.join(_words)}." * bool(_words)
    BRPOConfig.__dataclass_fields__[_name].metadata = {"help": _told}


# A published configuration: the nine of the paper, then others' to compare with. Name → how P_j
# comes of the budgets (None: of the largest alone, so that one list of budgets serves every preset
# and the thinkings are equally long); summaries a budget, and at which they are trained; baseline;
# length penalty.
PRESETS: dict[str, tuple[Callable[[Sequence[int]], Prior] | None, int, str, str, str | None]] = {
    # GRPO on the largest budget: final answer rewarded, group baseline
    "grpo": (None, 1, "last", "group", None),
    # GRPO+linear: every budget rewarded in proportion to its length, final summary trained
    "grpo_linear": (Prior.linear, 1, "last", "group", None),
    # GRPO+decouple: final answer rewarded, group baseline, summaries trained at every budget
    "grpo_decouple": (Prior.base, 4, "all", "group", None),
    # GRPO+vr: final answer rewarded, BRPO baseline from the earlier budgets' scores
    "grpo_vr": (Prior.base, 1, "last", "brpo", None),
    # AnytimeReasoner-base (GRPO+vr+decouple)
    "ar_base": (Prior.base, 4, "all", "brpo", None),
    # AnytimeReasoner-linear: P_j in proportion to b_j
    "ar_linear": (Prior.linear, 4, "all", "brpo", None),
    # AnytimeReasoner-uniform: every budget counts the same
    "ar_uniform": (Prior.uniform, 4, "all", "brpo", None),
    # GRPO with the L1 length penalty: 1 - 0.2 |z| / b_m where right
    "grpo_length_penalty_v1": (None, 1, "last", "group", "linear"),
    # GRPO with the length penalty of Arora & Zanette, alpha 0.2
    "grpo_length_penalty_v2": (None, 1, "last", "group", "group"),
    # GRPO with DAPO's soft overlong punishment (2503.14476) on the last fifth of b_m
    "grpo_overlong": (None, 1, "last", "group", "overlong"),
    # ThinkPrune (2504.01296): GRPO with no reward above 1 - alpha of b_m; shrink the limit by
    # training on with a larger length_penalty_alpha
    "think_prune": (None, 1, "last", "group", "limit"),
    # S-GRPO (2505.07686): the k-th right exit of a thinking earns 1 / 2^(k-1), and is compared
    # with the thinking's other exits
    "s_grpo": (Prior.uniform, 1, "all", "serial", "decay"),
}
_PRESET_FIELDS = ("num_summaries", "train_summaries", "baseline", "length_penalty")


def train_config(
    preset: str,
    budgets: Sequence[int],
    *,
    problems_per_step: int | None = None,
    rows_per_batch: int | None = None,
    settings: Mapping[str, Any] | str | None = None,
    **given: Any,
) -> BRPOConfig:
    """The settings of a run: a preset's, then those given, then `settings`.

    Unless told otherwise the learning rate is constant after 5 updates, and activations are kept.

    Args:
        preset: One of `PRESETS`.
        budgets: Token budgets, shortest first.
        problems_per_step: Problems of an update over all processes, each with `num_generations`
            thinkings; used exactly. None leaves the batch to TRL's own fields.
        rows_per_batch: Most thinkings in one forward and backward pass of a process. The largest
            number that parts an update evenly is taken, and told where it is another.
        settings: Any other fields of `BRPOConfig`, which win; a dict, or its JSON text.
        **given: Fields of `BRPOConfig`, such as `output_dir` and `max_steps`.

    Raises:
        TypeError: a field is unknown, or budgets are no list.
        ValueError: there is no such preset, or values do not go together.
    """
    if preset not in PRESETS:
        raise ValueError(f"there is no preset {preset!r}; choose one of {', '.join(PRESETS)}.")
    prior, *row = PRESETS[preset]
    budgets = check_budgets(_from_json(budgets))
    weighed = prior(budgets) if prior else Prior.base(budgets[-1:])
    fields_of = {
        "budgets": list(weighed.budgets),
        "prior": list(weighed.weights),
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 5,
        "gradient_checkpointing": False,
        **dict(zip(_PRESET_FIELDS, row, strict=True)),
        **given,
    }
    fix = 'Give a dict of fields such as {"num_summaries": 2}.'
    settings = read_as("settings", _from_json(settings or {}), dict[str, Any], fix)
    if problems_per_step is not None:
        fields_of |= _batches(problems_per_step, rows_per_batch, given | settings)
    return BRPOConfig(**(fields_of | settings))


def _batches(problems: Any, most: Any, given: Mapping[str, Any]) -> dict[str, int]:
    """Rows of a batch and batches of an update, for so many problems an update."""
    group = given.get("num_generations", BRPOConfig.num_generations)
    problems = read_as("problems_per_step", problems, _Whole)
    group = read_as("num_generations", group, _Whole)
    rows = problems * group
    most = rows if most is None else read_as("rows_per_batch", most, _Whole)
    processes = _processes()
    if min(problems, group, most) < 1 or rows % processes:
        raise ValueError(
            f"problems_per_step={problems} x num_generations={group} are {rows} thinkings in "
            f"batches of rows_per_batch={most}, on {processes} process(es). Each must be at least "
            "1, and the thinkings must divide among the processes."
        )
    own = rows // processes
    batch = max(size for size in range(1, min(most, own) + 1) if own % size == 0)
    if batch != min(most, own) and "per_device_train_batch_size" not in given:
        warnings.warn(
            f"problems_per_step={problems} x num_generations={group} are {own} thinkings a "
            f"process, which rows_per_batch={most} does not divide: batches of {batch} are taken.",
            stacklevel=3,
        )
    return {"per_device_train_batch_size": batch, "gradient_accumulation_steps": own // batch}


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
