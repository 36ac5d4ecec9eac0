"""What a trainer settles before any work: settings, rewards, tokenizer, format and data."""

import inspect
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import AutoConfig, PreTrainedTokenizerBase

from anytime_lab.engines import load
from anytime_lab.engines.base import Sampling
from anytime_lab.prompts import fit_verifier, prompt_ids, what_is_wrong
from anytime_lab.train.config import BRPOConfig

# What TRL hands to a reward function besides the columns of the dataset.
_GIVEN = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"}
_PROMPTS_MEASURED = 256


class Start:
    """What a trainer begins with, of the arguments that `BRPOTrainer` takes.

    Attributes:
        model: The model of an adapter's folder; another name is left to TRL, a model as given.
        args: The settings.
        functions: Rewards as a list that TRL takes.
        tokenizer: As given, or the one by the model's name.
        tokens: The thinking format in the tokenizer's ids.
        encode: From a prompt to its token ids.
        sampling: How rollouts are drawn; a summary samples what the forced text leaves of its
            tokens.
        example: Token ids of the first prompt.

    Raises:
        TypeError: the settings have no budgets; a reward is neither callable, nor a model or its
            name; the tokenizer is the processor of a model with images, or none at all; or a
            dataset is none.
        ValueError: the model has no name where one is needed, an adapter would stand on an adapter,
            or the model's loss cannot be computed on packed trees; there is no reward; the forced
            text leaves no room for an answer; something is wrong with a dataset, or an evaluation
            batch holds no whole groups.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: BRPOConfig | None,
        train_dataset: Any,
        eval_dataset: Any,
        tokenizer: Any,
        peft_config: Any,
    ):
        name = load.model_path(model) if isinstance(model, str) else model.config._name_or_path
        if args is None:
            args = BRPOConfig(f"{name.rstrip('/').split('/')[-1]}-BRPO")
        self.args, self.functions = args, _as_functions(reward_funcs)
        self.model = self._model(model, name, tokenizer, peft_config)
        kwargs = args.model_init_kwargs or {}
        of_hub = {"revision": kwargs.get("revision"), "trust_remote_code": args.trust_remote_code}
        by_name = isinstance(self.model, str)
        config = AutoConfig.from_pretrained(name, **of_hub) if by_name else self.model.config
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
            tokenizer = load.load_tokenizer(name, truncation_side="left", **of_hub)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise TypeError(
                f"processing_class is a {type(tokenizer).__name__}; expected a tokenizer, since "
                "trees are text only. Use AutoTokenizer.from_pretrained(model), or "
                "processor.tokenizer."
            )
        self.tokenizer = tokenizer
        self.tokens = load.load_tokens(self.model, tokenizer, args.thinking_format)
        fmt, template = self.tokens.fmt, args.chat_template_kwargs
        self.encode = lambda prompt: prompt_ids(prompt, tokenizer, fmt, template)
        self.functions = [fit_verifier(function, fmt) for function in self.functions]
        self.sampling = self._sampling()
        self._positions = getattr(text_config, "max_position_embeddings", None)
        self._check_datasets(train_dataset, eval_dataset)
        self.example = self.encode(next(iter(train_dataset))["prompt"])

    def _model(self, model: Any, name: str, tokenizer: Any, peft_config: Any) -> Any:
        args = self.args
        if not isinstance(args, BRPOConfig):
            raise TypeError(
                f"args is a {type(args).__name__}; expected a BRPOConfig, which has the budgets. "
                "Use one of the presets in anytime_lab.train.config, or BRPOConfig(budgets=[...], "
                "...)."
            )
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
        if not isinstance(model, str):
            return model
        if not load.adapter_base(name):
            return name
        if peft_config is not None:
            raise ValueError(
                f"{name} is a LoRA adapter, which is trained on; a second one (peft_config, or "
                "lora in the notebook) cannot stand on it. Leave that out."
            )
        given = {"dtype": "float32", **(args.model_init_kwargs or {})}
        return load.load_model(name, device="cpu", trainable=True, **given)

    def _sampling(self) -> Sampling:
        args, forced = self.args, self.tokens.longest_forced
        if args.max_summary_tokens <= forced:
            raise ValueError(
                f"max_summary_tokens is {args.max_summary_tokens}, but the forced text alone takes "
                f"{forced} tokens. Set it to {forced} plus the longest answer, e.g. {forced + 118}."
            )
        names = "temperature", "top_p", "top_k", "min_p"
        filters = {name: getattr(args, name) or 0 for name in names}  # None is off
        return Sampling(**filters, max_summary_tokens=args.max_summary_tokens - forced)

    def _check_datasets(self, train_dataset: Any, eval_dataset: Any) -> None:
        args = self.args
        datasets = {"train_dataset": train_dataset}
        if isinstance(eval_dataset, dict):
            datasets |= {f"eval_dataset[{key!r}]": one for key, one in eval_dataset.items()}
        elif eval_dataset is not None:
            datasets["eval_dataset"] = eval_dataset
        group = args.num_generations_eval or args.num_generations
        rows = args.per_device_eval_batch_size * args.world_size
        if len(datasets) > 1 and rows % group:
            raise ValueError(
                f"an evaluation batch has {rows} thinkings (per_device_eval_batch_size="
                f"{args.per_device_eval_batch_size} x {args.world_size} processes), no whole "
                f"number of groups of {group}. Set per_device_eval_batch_size={group}, or "
                "num_generations_eval."
            )
        problems = args.generation_batch_size // args.num_generations
        for name, dataset in datasets.items():
            if not isinstance(dataset, (Dataset, IterableDataset)):
                raise TypeError(
                    f"{name} is a {type(dataset).__name__}; expected a datasets.Dataset. "
                    "Use Dataset.from_list([...]) or load_dataset(...)."
                )
            if wrong := self._wrong_with(dataset, problems if name == "train_dataset" else 1):
                raise ValueError(f"{name}{wrong}")

    def _wrong_with(self, dataset: Any, problems_needed: int) -> str:
        """What is wrong with size, columns or prompts of a dataset, and its fix; empty if fine."""
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
        for function in self.functions:
            if missing := _columns_needed(function) - set(columns):
                label = getattr(function, "__name__", type(function).__name__)
                return (
                    f" has the columns {columns}, but the reward {label!r} needs "
                    f"{sorted(missing)}. Rename the column that holds the gold answer, or tell the "
                    "verifier its name: answer_column=..."
                )
        positions = self._positions
        return "" if streamed or positions is None else self._too_long(dataset["prompt"], positions)

    def _too_long(self, prompts: Any, positions: int) -> str:
        """Whether a prompt leaves too few positions for thinking and summary; empty if none does.

        Of a large dataset the prompts with the most characters are measured.
        """
        longest = sorted(prompts, key=lambda prompt: len(str(prompt)))[-_PROMPTS_MEASURED:]
        tokens = max(len(self.encode(prompt)) for prompt in longest)
        thinking, summary = self.args.budgets[-1], self.args.max_summary_tokens
        if (needed := tokens + thinking + summary) <= positions:
            return ""
        room = positions - tokens - summary
        lower = f"Lower the last budget to {room} or less, or drop" if room > 0 else "Drop"
        return (
            f": the longest prompt has {tokens} tokens; with a thinking of {thinking} (budgets) "
            f"and a summary of {summary} that is {needed}, but the model has {positions} "
            f"positions. {lower} the long prompts."
        )


def _as_functions(reward_funcs: Any) -> list[Any]:
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
