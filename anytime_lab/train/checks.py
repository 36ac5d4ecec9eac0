"""What a trainer settles before any work: settings, rewards, tokenizer, format and data."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from anytime_lab.engines.base import Sampling
from anytime_lab.engines.load import (
    adapter_base,
    load_model,
    load_tokenizer,
    load_tokens,
    model_path,
)
from anytime_lab.prompts import (
    ThinkingFormat,
    ThinkingTokens,
    fit_verifier,
    prompt_ids,
    what_is_wrong,
)
from anytime_lab.train.config import BRPOConfig

# What TRL hands to a reward function besides the columns of the dataset.
_GIVEN = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"}
_PROMPTS_MEASURED = 256


def as_reward_functions(reward_funcs: Any) -> list[Any]:
    """Reward functions as a list that TRL takes.

    Raises:
        ValueError: there is none.
        TypeError: one of them is neither callable, nor a model or its name.
    """
    functions = list(reward_funcs) if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
    if not functions or functions == [None]:
        raise ValueError(
            "no reward function was given. Pass a verifier such as CountdownVerifier(), or a "
            "function in TRL's signature (prompts, completions, **columns) -> list of scores."
        )
    for function in functions:
        if not callable(function) and not isinstance(function, str):
            raise TypeError(
                f"reward function {function!r} cannot be called. Pass a function, a verifier, "
                "a sequence classifier or the name of one."
            )
        if inspect.isclass(function):
            raise TypeError(
                f"{function.__name__} is a class; pass an object of it: {function.__name__}()."
            )
    return functions


def columns_needed(function: Any) -> set[str]:
    """Columns of the dataset without which a reward function cannot work."""
    verifier = getattr(function, "verifier", function)
    if hasattr(verifier, "grade"):
        return {getattr(verifier, "answer_column", "answer")}
    if isinstance(function, str) or not inspect.isroutine(function):
        return set()
    needed = (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
    return {
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in needed and parameter.default is inspect.Parameter.empty
    } - _GIVEN


def check_dataset(
    name: str,
    dataset: Any,
    reward_funcs: Sequence[Any],
    problems_needed: int,
) -> None:
    """Check one dataset: its type, columns and size.

    Args:
        name: "train_dataset" or "eval_dataset", for the message.
        dataset: what the user gave.
        reward_funcs: they may need columns.
        problems_needed: problems in one batch, below which nothing would run.

    Raises:
        TypeError: it is no dataset.
        ValueError: it is empty, too small, or lacks a column.
    """
    if not isinstance(dataset, (Dataset, IterableDataset)):
        raise TypeError(
            f"{name} is a {type(dataset).__name__}; expected a datasets.Dataset. "
            "Use Dataset.from_list([...]) or load_dataset(...)."
        )
    if isinstance(dataset, Dataset):
        if len(dataset) == 0:
            raise ValueError(f"{name} is empty; expected at least {problems_needed} problems.")
        if len(dataset) < problems_needed:
            raise ValueError(
                f"{name} has {len(dataset)} problems, but one batch takes {problems_needed}, so "
                "that nothing would run. Add problems, or lower the batch size or num_generations' "
                "multiple (per_device_*_batch_size, gradient_accumulation_steps)."
            )
        columns = dataset.column_names
    else:
        columns = list(next(iter(dataset), {}))
        if not columns:
            raise ValueError(f"{name} yields nothing; expected problems with a 'prompt'.")
    if "prompt" not in columns:
        raise ValueError(
            f"{name} has the columns {columns}, but no 'prompt'. Rename the column that holds the "
            "question: dataset.rename_column('question', 'prompt')."
        )
    if {"image", "images"} & set(columns):
        raise ValueError(
            f"{name} has an image column; trees are text only. Remove it with remove_columns."
        )
    if clash := sorted(_GIVEN & set(columns)):
        raise ValueError(
            f"{name} has the column {clash[0]!r}, a name under which rewards are given something "
            f"else. Rename it: dataset.rename_column({clash[0]!r}, 'own_{clash[0]}')."
        )
    for row, prompt in enumerate(dataset["prompt"] if isinstance(dataset, Dataset) else ()):
        if wrong := what_is_wrong(prompt):
            raise ValueError(f"{name}: the prompt of row {row} {wrong}")
    for function in reward_funcs:
        missing = columns_needed(function) - set(columns)
        if missing:
            label = getattr(function, "__name__", type(function).__name__)
            raise ValueError(
                f"{name} has the columns {columns}, but the reward {label!r} needs "
                f"{sorted(missing)}. Rename the column that holds the gold answer, or tell the "
                "verifier its name: answer_column=..."
            )


def check_eval_batches(config: BRPOConfig) -> int:
    """Problems in one evaluation batch.

    Raises:
        ValueError: an evaluation batch does not hold whole groups.
    """
    group = config.num_generations_eval or config.num_generations
    rows = config.per_device_eval_batch_size * config.world_size
    if rows % group:
        raise ValueError(
            f"an evaluation batch has {rows} thinkings (per_device_eval_batch_size="
            f"{config.per_device_eval_batch_size} x {config.world_size} processes), no whole "
            f"number of groups of {group}. Set per_device_eval_batch_size={group}, or "
            "num_generations_eval."
        )
    return rows // group


def check_tokenizer(processing_class: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a text model.

    Raises:
        TypeError: it is the processor of a model with images, or no tokenizer at all.
    """
    if isinstance(processing_class, ProcessorMixin):
        raise TypeError(
            f"processing_class is a {type(processing_class).__name__}; trees are text only. "
            "Pass its tokenizer: processing_class=processor.tokenizer."
        )
    if not isinstance(processing_class, PreTrainedTokenizerBase):
        raise TypeError(
            f"processing_class is a {type(processing_class).__name__}; expected a tokenizer. "
            "Use AutoTokenizer.from_pretrained(model)."
        )
    return processing_class


def new_tokens_per_summary(config: BRPOConfig, tokens: ThinkingTokens) -> int:
    """Sampled tokens of a summary: what the forced text leaves of `max_summary_tokens`.

    Raises:
        ValueError: the forced text leaves no room for an answer.
    """
    forced = tokens.longest_forced
    if config.max_summary_tokens <= forced:
        raise ValueError(
            f"max_summary_tokens is {config.max_summary_tokens}, but the forced text alone takes "
            f"{forced} tokens. Set it to {forced} plus the longest answer, e.g. {forced + 118}."
        )
    return config.max_summary_tokens - forced


def check_lengths(
    name: str,
    dataset: Any,
    model_config: PretrainedConfig,
    config: BRPOConfig,
    encode: Callable[[Any], list[int]],
) -> None:
    """Check that the longest prompts fit the model with a whole thinking and a summary.

    Of a large dataset the prompts with the most characters are measured.

    Raises:
        ValueError: a prompt leaves too few positions.
    """
    text_config = model_config.get_text_config()
    positions = getattr(text_config, "max_position_embeddings", None)
    if positions is None or not isinstance(dataset, Dataset):
        return
    longest = sorted(dataset["prompt"], key=_characters)[-_PROMPTS_MEASURED:]
    tokens = max(len(encode(prompt)) for prompt in longest)
    needed = tokens + config.budgets[-1] + config.max_summary_tokens
    if needed > positions:
        room = positions - tokens - config.max_summary_tokens
        lower = f"Lower the last budget to {room} or less, or drop" if room > 0 else "Drop"
        raise ValueError(
            f"the longest prompt of {name} has {tokens} tokens; with a thinking of "
            f"{config.budgets[-1]} (budgets) and a summary of {config.max_summary_tokens} that is "
            f"{needed}, but the model has {positions} positions. {lower} the long prompts."
        )


def _characters(prompt: Any) -> int:
    if isinstance(prompt, str):
        return len(prompt)
    return sum(len(str(message.get("content"))) for message in prompt)


def prompt_encoder(
    tokenizer: PreTrainedTokenizerBase, fmt: ThinkingFormat, template_kwargs: dict | None
) -> Callable[[Any], list[int]]:
    """A function from a prompt (text or conversation) to the token ids that a thinking follows."""
    return lambda prompt: prompt_ids(prompt, tokenizer, fmt, template_kwargs)


def check_model(model_config: PretrainedConfig, config: BRPOConfig, has_adapter: bool) -> None:
    """Check what the model's own settings rule out.

    Raises:
        ValueError: the model's loss or reference cannot be computed on packed trees.
    """
    text_config = model_config.get_text_config()
    if hasattr(text_config, "output_router_logits"):
        coefficient = config.router_aux_loss_coef
        if coefficient is None:
            coefficient = getattr(text_config, "router_aux_loss_coef", 0.0)
        if coefficient:
            raise ValueError(
                f"the model's load-balancing loss (router_aux_loss_coef={coefficient}) counts "
                "padding and shared prefixes of packed trees wrongly. Set router_aux_loss_coef=0.0."
            )
    if config.beta and not has_adapter and not getattr(model_config, "_name_or_path", ""):
        raise ValueError(
            f"beta={config.beta} needs a reference model, but this model object was not loaded "
            "from anywhere. Save it and pass the folder's path as model, use a peft_config, or set "
            "beta=0."
        )


@dataclass(frozen=True)
class RunSetup:
    """Checked parts of a run.

    Attributes:
        model: As given, or an adapter on its model.
        args: The settings.
        functions: Reward functions as TRL takes them.
        tokenizer: Of the model.
        tokens: The thinking format in its ids.
        encode_prompt: From a prompt to the token ids that a thinking follows.
        sampling: How rollouts are drawn.
        example: A prompt in token ids.
    """

    model: Any
    args: BRPOConfig
    functions: list[Any]
    tokenizer: PreTrainedTokenizerBase
    tokens: ThinkingTokens
    encode_prompt: Callable[[Any], list[int]]
    sampling: Sampling
    example: tuple[int, ...]


def prepare_run(
    model: Any,
    reward_funcs: Any,
    args: BRPOConfig | None,
    train_dataset: Any,
    eval_dataset: Any,
    processing_class: Any,
    peft_config: Any,
    thinking_format: ThinkingFormat | str | dict | None,
) -> RunSetup:
    """Check the arguments of `BRPOTrainer`, which see.

    Raises:
        TypeError, ValueError: they do not go together; the message says the fix.
    """
    name = model_path(model) if isinstance(model, str) else model.config._name_or_path
    if args is None:
        args = BRPOConfig(f"{name.rstrip('/').split('/')[-1]}-BRPO")
    if not isinstance(args, BRPOConfig):
        raise TypeError(
            f"args is a {type(args).__name__}; expected a BRPOConfig, which has the budgets. "
            "Use one of the presets in anytime_lab.train.config, or BRPOConfig(budgets=[...], ...)."
        )
    if args.use_vllm and args.vllm_mode == "colocate" and not name:
        raise ValueError(
            "the model object has no name or folder that vLLM could load. Save it "
            "(model.save_pretrained, tokenizer.save_pretrained) and pass the folder as the model."
        )
    if isinstance(model, str):
        model = name
        if adapter_base(name):
            if peft_config is not None:
                raise ValueError(
                    f"{name} is a LoRA adapter, which is trained on; a second one (peft_config, or "
                    "lora in the notebook) cannot stand on it. Leave that out."
                )
            processing_class = processing_class or load_tokenizer(name)
            kwargs = {"dtype": "float32", **(args.model_init_kwargs or {})}
            model = load_model(name, device="cpu", trainable=True, **kwargs)
    functions = as_reward_functions(reward_funcs)
    model_config = _model_config(model, args)
    has_adapter = peft_config is not None or hasattr(model, "peft_config")
    check_model(model_config, args, has_adapter)
    tokenizer = check_tokenizer(processing_class or _load_tokenizer(name, args))
    tokens = load_tokens(model, tokenizer, thinking_format or args.thinking_format)
    functions = [fit_verifier(function, tokens.fmt) for function in functions]
    encode_prompt = prompt_encoder(tokenizer, tokens.fmt, args.chat_template_kwargs)
    sampling = Sampling(
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k or 0,
        min_p=args.min_p or 0.0,
        max_summary_tokens=new_tokens_per_summary(args, tokens),
    )
    problems = args.generation_batch_size // args.num_generations
    check_dataset("train_dataset", train_dataset, functions, problems)
    check_lengths("train_dataset", train_dataset, model_config, args, encode_prompt)
    evaluations = eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}
    for key, dataset in evaluations.items():
        if dataset is not None:
            label = f"eval_dataset[{key!r}]" if key else "eval_dataset"
            check_eval_batches(args)
            check_dataset(label, dataset, functions, 1)
            check_lengths(label, dataset, model_config, args, encode_prompt)
    example = encode_prompt(next(iter(train_dataset))["prompt"])
    return RunSetup(
        model, args, functions, tokenizer, tokens, encode_prompt, sampling, tuple(example)
    )


def _model_config(model, args: BRPOConfig):
    """The model's configuration, without loading weights."""
    if not isinstance(model, str):
        return model.config
    kwargs = args.model_init_kwargs or {}
    return AutoConfig.from_pretrained(
        model, revision=kwargs.get("revision"), trust_remote_code=args.trust_remote_code
    )


def _load_tokenizer(name: str, args: BRPOConfig) -> PreTrainedTokenizerBase:
    if not name:
        raise ValueError(
            "the model object has no name to load a tokenizer from. Pass processing_class=..."
        )
    kwargs = args.model_init_kwargs or {}
    return AutoTokenizer.from_pretrained(
        name,
        revision=kwargs.get("revision"),
        trust_remote_code=args.trust_remote_code,
        padding_side="left",
        truncation_side="left",
    )
