"""What a trainer settles before any work: settings, rewards, tokenizer, format and data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from anytime_lab.engines.base import Sampling
from anytime_lab.prompts import ThinkingFormat, ThinkingTokens, detect_format, resolve_tokens
from anytime_lab.train import checks
from anytime_lab.train.config import BRPOConfig


@dataclass(frozen=True)
class RunSetup:
    """Checked parts of a run.

    Attributes:
        args: The settings.
        functions: Reward functions as TRL takes them.
        tokenizer: Of the model.
        tokens: The thinking format in its ids.
        encode_prompt: From a prompt to the token ids that a thinking follows.
        sampling: How rollouts are drawn.
    """

    args: BRPOConfig
    functions: list[Any]
    tokenizer: PreTrainedTokenizerBase
    tokens: ThinkingTokens
    encode_prompt: Callable[[Any], list[int]]
    sampling: Sampling


def prepare_run(
    model: Any,
    reward_funcs: Any,
    args: BRPOConfig | None,
    train_dataset: Any,
    eval_dataset: Any,
    processing_class: Any,
    peft_config: Any,
    thinking_format: ThinkingFormat | None,
) -> RunSetup:
    """Check the arguments of `BRPOTrainer`, which see.

    Raises:
        TypeError, ValueError: they do not go together; the message says the fix.
    """
    name = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "")
    if args is None:
        args = BRPOConfig(f"{name.rstrip('/').split('/')[-1]}-BRPO")
    if not isinstance(args, BRPOConfig):
        raise TypeError(
            f"args is a {type(args).__name__}; expected a BRPOConfig, which has the budgets. "
            "Use anytime_lab.train.presets or BRPOConfig(budgets=[...], ...)."
        )
    if args.use_vllm and args.vllm_mode == "colocate" and not name:
        raise ValueError(
            "the model object has no name or folder that vLLM could load. Save it "
            "(model.save_pretrained, tokenizer.save_pretrained) and pass the folder as the model."
        )
    functions = checks.as_reward_functions(reward_funcs)
    model_config = _model_config(model, args)
    has_adapter = peft_config is not None or hasattr(model, "peft_config")
    checks.check_model(model_config, args, has_adapter)
    tokenizer = checks.check_tokenizer(processing_class or _load_tokenizer(name, args))
    fmt = thinking_format or detect_format(tokenizer)
    tokens = resolve_tokens(tokenizer, fmt)
    encode_prompt = checks.prompt_encoder(tokenizer, fmt, args.chat_template_kwargs)
    sampling = Sampling(
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k or 0,
        min_p=args.min_p or 0.0,
        max_summary_tokens=checks.new_tokens_per_summary(args, tokens),
    )
    problems = args.generation_batch_size // args.num_generations
    checks.check_dataset("train_dataset", train_dataset, functions, problems)
    checks.check_lengths("train_dataset", train_dataset, model_config, args, encode_prompt)
    evaluations = eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}
    for key, dataset in evaluations.items():
        if dataset is not None:
            label = f"eval_dataset[{key!r}]" if key else "eval_dataset"
            checks.check_eval_batches(args)
            checks.check_dataset(label, dataset, functions, 1)
            checks.check_lengths(label, dataset, model_config, args, encode_prompt)
    return RunSetup(args, functions, tokenizer, tokens, encode_prompt, sampling)


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
