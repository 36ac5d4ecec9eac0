"""What a trainer settles before any work: settings, rewards, tokenizer, format and data."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from anytime_lab.engines.base import Sampling
from anytime_lab.engines.load import adapter_base, load_model, load_tokenizer
from anytime_lab.prompts import ThinkingTokens, what_is_wrong
from anytime_lab.train.config import BRPOConfig

# What TRL hands to a reward function besides the columns of the dataset.
_GIVEN = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"}
_PROMPTS_MEASURED = 256


def load_start(
    model: Any, name: str, tokenizer: Any, args: BRPOConfig, peft_config: Any
) -> tuple[Any, PretrainedConfig, PreTrainedTokenizerBase]:
    """What training begins with: a model, its configuration, and the tokenizer of a text model.

    Args:
        model: As given. Of an adapter's folder the model is loaded; another name stays one.
        name: Of the model, "" where it has none.
        tokenizer: As given; None takes the one by the model's name.
        args: The settings.
        peft_config: Of an adapter that training adds, or None.

    Raises:
        TypeError: the settings have no budgets; or the tokenizer is the processor of a model with
            images, or none at all.
        ValueError: the model has no name where one is needed, an adapter would stand on an adapter,
            or the model's loss cannot be computed on packed trees.
    """
    if not isinstance(args, BRPOConfig):
        raise TypeError(
            f"args is a {type(args).__name__}; expected a BRPOConfig, which has the budgets. "
            "Use one of the presets in anytime_lab.train.config, or BRPOConfig(budgets=[...], ...)."
        )
    kwargs = args.model_init_kwargs or {}
    of_hub = {"revision": kwargs.get("revision"), "trust_remote_code": args.trust_remote_code}
    reference = args.beta and peft_config is None and not hasattr(model, "peft_config")
    needs = (
        (args.use_vllm and args.vllm_mode == "colocate", "vLLM could load", ""),
        (tokenizer is None, "has a tokenizer", " Or pass processing_class=..."),
        (
            reference,
            f"the reference model of beta={args.beta} could be loaded from",
            " Or use a peft_config, or set beta=0.",
        ),
    )
    for needed, what, way in needs:
        if needed and not name:
            raise ValueError(
                f"the model object has no name or folder that {what}. Save it "
                "(model.save_pretrained, tokenizer.save_pretrained) and pass the folder as the "
                f"model.{way}"
            )
    if isinstance(model, str):
        model = name
        if adapter_base(name):
            if peft_config is not None:
                raise ValueError(
                    f"{name} is a LoRA adapter, which is trained on; a second one (peft_config, or "
                    "lora in the notebook) cannot stand on it. Leave that out."
                )
            model = load_model(name, device="cpu", trainable=True, **{"dtype": "float32", **kwargs})
    by_name = isinstance(model, str)
    config = AutoConfig.from_pretrained(model, **of_hub) if by_name else model.config
    text_config = config.get_text_config()
    coefficient = args.router_aux_loss_coef
    if coefficient is None:
        coefficient = getattr(text_config, "router_aux_loss_coef", 0.0)
    if hasattr(text_config, "output_router_logits") and coefficient:
        raise ValueError(
            f"the model's load-balancing loss (router_aux_loss_coef={coefficient}) counts "
            "padding and shared prefixes of packed trees wrongly. Set router_aux_loss_coef=0.0."
        )
    if tokenizer is None:
        tokenizer = load_tokenizer(name, truncation_side="left", **of_hub)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(
            f"processing_class is a {type(tokenizer).__name__}; expected a tokenizer, since trees "
            "are text only. Use AutoTokenizer.from_pretrained(model), or processor.tokenizer."
        )
    return model, config, tokenizer


def sampling_of(args: BRPOConfig, tokens: ThinkingTokens) -> Sampling:
    """How rollouts are drawn; a summary samples what the forced text leaves of its tokens.

    Raises:
        ValueError: the forced text leaves no room for an answer.
    """
    forced = tokens.longest_forced
    if args.max_summary_tokens <= forced:
        raise ValueError(
            f"max_summary_tokens is {args.max_summary_tokens}, but the forced text alone takes "
            f"{forced} tokens. Set it to {forced} plus the longest answer, e.g. {forced + 118}."
        )
    return Sampling(
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k or 0,
        min_p=args.min_p or 0.0,
        max_summary_tokens=args.max_summary_tokens - forced,
    )


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


def _columns_needed(function: Any) -> set[str]:
    """Columns of the dataset without which a reward function cannot work."""
    verifier = getattr(function, "verifier", function)
    if hasattr(verifier, "grade"):
        return {getattr(verifier, "answer_column", "answer")}
    if not inspect.isroutine(function):
        return set()
    needed = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind in needed and p.default is p.empty} - _GIVEN


def check_datasets(
    train_dataset: Any,
    eval_dataset: Any,
    functions: Sequence[Any],
    model_config: PretrainedConfig,
    args: BRPOConfig,
    encode: Callable[[Any], list[int]],
) -> None:
    """Check type, columns, size and prompts of each dataset.

    Args:
        train_dataset: As given.
        eval_dataset: One, several by name, or None.
        functions: The rewards, which may need columns.
        model_config: How many positions the model has.
        args: The settings.
        encode: From a prompt to its token ids.

    Raises:
        TypeError: one is no dataset.
        ValueError: something is wrong with one, or an evaluation batch holds no whole groups.
    """
    several = eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}
    evaluations = {
        f"eval_dataset[{key!r}]" if key else "eval_dataset": dataset
        for key, dataset in several.items()
        if dataset is not None
    }
    group = args.num_generations_eval or args.num_generations
    rows = args.per_device_eval_batch_size * args.world_size
    if evaluations and rows % group:
        raise ValueError(
            f"an evaluation batch has {rows} thinkings (per_device_eval_batch_size="
            f"{args.per_device_eval_batch_size} x {args.world_size} processes), no whole "
            f"number of groups of {group}. Set per_device_eval_batch_size={group}, or "
            "num_generations_eval."
        )
    positions = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    for name, dataset in {"train_dataset": train_dataset, **evaluations}.items():
        if not isinstance(dataset, (Dataset, IterableDataset)):
            raise TypeError(
                f"{name} is a {type(dataset).__name__}; expected a datasets.Dataset. "
                "Use Dataset.from_list([...]) or load_dataset(...)."
            )
        needed = 1 if name in evaluations else args.generation_batch_size // args.num_generations
        wrong = _wrong_rows(dataset, functions, needed)
        if not wrong and positions is not None and isinstance(dataset, Dataset):
            wrong = _too_long(dataset["prompt"], positions, args, encode)
        if wrong:
            raise ValueError(f"{name}{wrong}")


def _wrong_rows(dataset: Any, functions: Sequence[Any], problems_needed: int) -> str:
    """What is wrong with size, columns or prompts of a dataset, and the fix; empty if nothing."""
    streamed = isinstance(dataset, IterableDataset)
    columns = list(next(iter(dataset), {})) if streamed else dataset.column_names
    if streamed and not columns:
        return " yields nothing; expected problems with a 'prompt'."
    if not streamed and len(dataset) == 0:
        return f" is empty; expected at least {problems_needed} problems."
    if not streamed and len(dataset) < problems_needed:
        return (
            f" has {len(dataset)} problems, but one batch takes {problems_needed}, so "
            "that nothing would run. Add problems, or lower the batch size or num_generations' "
            "multiple (per_device_*_batch_size, gradient_accumulation_steps)."
        )
    if "prompt" not in columns:
        return (
            f" has the columns {columns}, but no 'prompt'. Rename the column that holds the "
            "question: dataset.rename_column('question', 'prompt')."
        )
    if {"image", "images"} & set(columns):
        return " has an image column; trees are text only. Remove it with remove_columns."
    if clash := sorted(_GIVEN & set(columns)):
        return (
            f" has the column {clash[0]!r}, a name under which rewards are given something "
            f"else. Rename it: dataset.rename_column({clash[0]!r}, 'own_{clash[0]}')."
        )
    for row, prompt in enumerate(() if streamed else dataset["prompt"]):
        if wrong := what_is_wrong(prompt):
            return f": the prompt of row {row} {wrong}"
    for function in functions:
        if missing := _columns_needed(function) - set(columns):
            label = getattr(function, "__name__", type(function).__name__)
            return (
                f" has the columns {columns}, but the reward {label!r} needs "
                f"{sorted(missing)}. Rename the column that holds the gold answer, or tell the "
                "verifier its name: answer_column=..."
            )
    return ""


def _too_long(prompts: Sequence[Any], positions: int, args: BRPOConfig, encode: Callable) -> str:
    """Whether a prompt leaves too few positions for a thinking and a summary; empty if none does.

    Of a large dataset the prompts with the most characters are measured.
    """
    longest = sorted(prompts, key=lambda prompt: len(str(prompt)))[-_PROMPTS_MEASURED:]
    tokens = max(len(encode(prompt)) for prompt in longest)
    needed = tokens + args.budgets[-1] + args.max_summary_tokens
    if needed <= positions:
        return ""
    room = positions - tokens - args.max_summary_tokens
    lower = f"Lower the last budget to {room} or less, or drop" if room > 0 else "Drop"
    return (
        f": the longest prompt has {tokens} tokens; with a thinking of "
        f"{args.budgets[-1]} (budgets) and a summary of {args.max_summary_tokens} that is "
        f"{needed}, but the model has {positions} positions. {lower} the long prompts."
    )
