"""Formats and prompts, on tokenizers built here."""

from dataclasses import replace

import pytest
import tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from anytime_lab.prompts import (
    COUNTDOWN,
    PLAIN,
    QWEN3,
    R1,
    UNMARKED,
    ThinkingFormat,
    detect_format,
    prompt_ids,
    resolve_tokens,
)

CHAT = [{"role": "user", "content": "1+1?"}]
# The generation prompts of the families, as their templates write them.
QWEN3_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
R1_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<｜User｜>{{ m.content }}{% endfor %}"
    "<｜Assistant｜><think>\n"
)


def characters(template=None, markers=("<think>", "</think>"), specials=(), bos=None):
    """A tokenizer of single characters with a few tokens more."""
    words = [chr(c) for c in range(32, 127)] + ["\n", "<unk>", "<eos>", *specials]
    words += [bos] if bos else []
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.add_tokens(list(markers))
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<eos>", unk_token="<unk>", bos_token=bos,
        additional_special_tokens=list(specials), chat_template=template,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def pieces(ids, tok):
    return "".join(tok.convert_ids_to_tokens(ids))


def test_a_prompt_ends_with_the_think_open_marker_once_whatever_the_template_does():
    tok = characters(QWEN3_TEMPLATE, specials=("<|im_start|>", "<|im_end|>"))
    end = pieces(prompt_ids(CHAT, tok, QWEN3), tok)
    assert end.endswith("<|im_start|>assistant\n<think>\n")
    assert end.count("<think>") == 1
    tok = characters(R1_TEMPLATE, specials=("<｜User｜>", "<｜Assistant｜>"), bos="<bos>")
    end = pieces(prompt_ids(CHAT, tok, R1), tok)
    assert end == "<bos><｜User｜>1+1?<｜Assistant｜><think>\n"


def test_a_template_that_opens_without_a_newline_is_completed():
    template = R1_TEMPLATE.replace("<think>\n", "<think>")
    tok = characters(template, specials=("<｜User｜>", "<｜Assistant｜>"), bos="<bos>")
    assert pieces(prompt_ids(CHAT, tok, R1), tok).endswith("<｜Assistant｜><think>\n")


def test_thinking_switched_off_is_refused():
    tok = characters(QWEN3_TEMPLATE, specials=("<|im_start|>", "<|im_end|>"))
    with pytest.raises(ValueError, match="enable_thinking"):
        prompt_ids(CHAT, tok, QWEN3, {"enable_thinking": False})


def test_text_is_taken_as_it_is_and_keeps_one_bos():
    tok = characters(bos="<bos>")
    assert pieces(prompt_ids("Q: 1+1?\n", tok, PLAIN), tok) == "Q: 1+1?\n<think>\n"
    assert pieces(prompt_ids("<bos>Q<think>\n", tok, PLAIN), tok) == "<bos>Q<think>\n"


def test_base_models_get_a_conversation_as_plain_text():
    tok = characters()
    assert pieces(prompt_ids(CHAT, tok, PLAIN), tok) == "1+1?\n\n<think>\n"
    with pytest.raises(ValueError, match="PLAIN"):
        prompt_ids(CHAT, tok, QWEN3)


def test_text_in_parts_is_the_same_prompt():
    parts = [{"role": "user", "content": [{"type": "text", "text": t} for t in ("1+", "1?")]}]
    tok = characters(QWEN3_TEMPLATE, specials=("<|im_start|>", "<|im_end|>"))
    for fmt in (QWEN3, PLAIN):
        assert prompt_ids(parts, tok, fmt) == prompt_ids(CHAT, tok, fmt)


def test_a_header_without_tokens_is_refused():
    with pytest.raises(ValueError, match="header '' is no token"):
        resolve_tokens(characters(), ThinkingFormat(header=""))


def test_marker_ids_come_from_the_tokenizer():
    tok = characters(QWEN3_TEMPLATE, specials=("<|im_start|>", "<|im_end|>"))
    tokens = resolve_tokens(tok, QWEN3)
    assert tok.convert_ids_to_tokens(tokens.close_id) == "</think>"
    assert pieces(tokens.cut_ids, tok) == "...\n\n...\n\n</think>\n\n**Final Answer**\n"
    assert tokens.cut_ids.count(tokens.close_id) == 1
    assert pieces(tokens.header_ids, tok) == "\n\n**Final Answer**\n"
    ends = {tok.convert_ids_to_tokens(i) for i in tokens.eos_ids}
    assert ends == {"<eos>", "<|im_end|>"}
    assert tokens.pad_id == tok.eos_token_id


@pytest.mark.parametrize(
    ("text", "ends_turn"),
    [("<end_of_turn>", True), ("<|eom_id|>", True), ("<|user|>", True), ("<start_of_turn>", False)],
)
def test_a_turn_ends_by_an_added_token_that_is_not_special_too(text, ends_turn):
    tok = characters(markers=("<think>", "</think>", text))
    assert text not in tok.all_special_tokens
    ended = tok.convert_tokens_to_ids(text) in resolve_tokens(tok, PLAIN).eos_ids
    assert ended is ends_turn


def test_what_is_forced_depends_on_how_the_thinking_ended():
    tokens = resolve_tokens(tiny.tokenizer(), COUNTDOWN)
    assert tokens.forced("closed", 5, 9) == tokens.cut_ids
    assert tokens.forced("closed", 9, 9) == tokens.header_ids
    assert tokens.forced("eos", 9, 9) == tokens.header_ids
    assert tokens.forced("length", 9, 9) == tokens.cut_ids


def test_a_marker_may_be_several_tokens_but_has_to_be_written_somehow():
    tok = characters(markers=())
    tokens = resolve_tokens(tok, PLAIN)
    assert tokens.close_id is None and tokens.stop_text == "</think>"
    assert tokens.stop_ids == tokens.eos_ids
    with pytest.raises(ValueError, match="cannot be written in this tokenizer's.*unmarked"):
        resolve_tokens(tok, replace(PLAIN, think_close="→", cut_suffix="→"))


def test_a_tokenizer_without_eos_is_refused():
    tok = characters()
    tok.eos_token = None
    with pytest.raises(ValueError, match="EOS"):
        resolve_tokens(tok, PLAIN)


def test_other_markers_can_be_given():
    tok = characters(markers=("[/T]",))
    fmt = ThinkingFormat(think_open="[T]", think_close="[/T]", cut_suffix="[/T]", header=" A: ")
    assert resolve_tokens(tok, fmt).close_id == tok.convert_tokens_to_ids("[/T]")


@pytest.mark.parametrize(
    "fields",
    [
        {"cut_suffix": "..."},
        {"cut_suffix": "</think></think>"},
        {"header": "</think>"},
    ],
)
def test_a_format_closes_the_thinking_exactly_once(fields):
    with pytest.raises(ValueError, match="think_close"):
        ThinkingFormat(**fields)


def test_the_format_is_found_by_the_template():
    assert detect_format(characters()) is PLAIN
    assert detect_format(characters(markers=())) == replace(UNMARKED, chat_template=False)
    assert detect_format(characters("{{ messages }}", markers=())) == UNMARKED
    assert detect_format(characters("{{ messages }}<think>", markers=())) == ThinkingFormat()
    assert detect_format(characters(QWEN3_TEMPLATE)) is QWEN3
    assert detect_format(characters(R1_TEMPLATE)) is R1
    assert detect_format(tiny.tokenizer()) is COUNTDOWN
    assert detect_format(characters("{{ messages }}")) == ThinkingFormat()
