"""The model card of a training: TRL's, with settings, data, how to load it, and its curve."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from anytime_lab.prompts import describe_format
from anytime_lab.store.card import CARD, curve_block, known_curve
from anytime_lab.train.recording import describe_run, read_manifest

_TEXT = """# {name}

A model that is to give its best answer wherever its thinking is cut: {start}, trained with
[{title}](https://huggingface.co/papers/{paper}) by `anytime_lab` on
[TRL](https://github.com/huggingface/trl).

## How to load it

```python
from transformers import AutoTokenizer
from {library} import {loader}

tokenizer = AutoTokenizer.from_pretrained("{where}")
model = {loader}.from_pretrained("{where}")
```

```text
{format}
```

## Accuracy by thinking budget

{curve}

## Settings

| setting | value |
|---|---|
{settings}

## Data

{data}

"""


def complete_card(trainer: Any, folder: str | Path) -> None:
    """Write TRL's card of a trainer (in its `output_dir`) into a folder, with what it lacks.

    A curve that was measured after the same update is kept.

    Args:
        trainer: A `BRPOTrainer` whose card was made.
        folder: Of the saved model.
    """
    args, output_dir = trainer.args, Path(trainer.args.output_dir)
    card = ModelCard.load(output_dir / CARD)
    told = describe_run(trainer) | read_manifest(output_dir)
    data, start = told["dataset"], told["model"]
    update = trainer.state.global_step
    cards = [Path(folder) / CARD, output_dir / CARD, *sorted(output_dir.glob(f"*/{CARD}"))]
    values = {"updates": update, **args.method, "lora": start["lora"]}
    adapter = start["lora"] is not None
    ours = _TEXT.format(
        name=Path(trainer.hub_model_id or output_dir).name,
        start=f"`{start['name']}`" + " with an adapter" * adapter,
        title=trainer._paper["title"],
        paper=trainer._paper["id"],
        library="peft" if adapter else "transformers",
        loader="AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM",
        where=trainer.hub_model_id or folder,
        format=describe_format(trainer.tokens, trainer.example),
        curve=curve_block(update, known_curve(cards, update)),
        settings="\n".join(f"| `{name}` | {value} |" for name, value in values.items()),
        data=f"{data['problems'] or 'A stream of'} problems. {data['source']} (sha256 of the "
        f"problems: `{data['sha256']}`)",
    )
    card.text = ours + card.text[card.text.index("## Training procedure") :]
    card.save(Path(folder) / CARD)
