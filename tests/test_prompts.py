"""Formats and prompts, on tokenizers built here."""

from dataclasses import replace

import families
import pytest
import tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from anytime_lab.prompts import (
    COUNTDOWN,
    FORMATS,
    ThinkingFormat,
    choose_format,
    fit_verifier,
    prompt_ids,
    resolve_tokens,
    text_and_ends,
)
from anytime_lab.verify.verifiers import ExactVerifier

R1, QWEN3, PLAIN, UNMARKED, HARMONY = (
    FORMATS[name][0] for name in ("r1", "qwen3", "plain", "unmarked", "harmony")
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
    with pytest.raises(ValueError, match="chat_template"):
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
    assert choose_format(characters())[0] == PLAIN
    assert choose_format(characters(markers=()))[0] == replace(UNMARKED, chat_template=False)
    assert choose_format(characters("{{ messages }}", markers=()))[0] == UNMARKED
    assert choose_format(characters("{{ messages }}<think>", markers=()))[0] == ThinkingFormat()
    assert choose_format(characters(QWEN3_TEMPLATE))[0] == QWEN3
    assert choose_format(characters(R1_TEMPLATE))[0] == R1
    assert choose_format(tiny.tokenizer())[0] == COUNTDOWN
    assert choose_format(characters("{{ messages }}"))[0] == ThinkingFormat()


CUT = "...ĊĊ...ĊĊ"
HEADER = "**FinalĠAnswer**Ċ"
# Family → format, the prompt (its end where a system turn comes first), ends of a turn, what is
# forced after a thinking that was cut.
ASKED = {
    "qwen2.5": ("unmarked", "<|im_start|>userĊ1+1?<|im_end|>Ċ<|im_start|>assistantĊ",
                {"<|im_end|>", "<|endoftext|>"}, CUT[:-2] + "ĊĊ" + HEADER),
    "qwen3": ("qwen3", "<|im_start|>userĊ1+1?<|im_end|>Ċ<|im_start|>assistantĊ<think>Ċ",
              {"<|im_end|>", "<|endoftext|>"}, CUT + "</think>ĊĊ" + HEADER),
    "r1-distill": ("r1", "<｜begin▁of▁sentence｜><｜User｜>1+1?<｜Assistant｜><think>Ċ",
                   {"<｜end▁of▁sentence｜>"}, CUT + "</think>ĊĊ" + HEADER),
    "llama3": ("unmarked", "<|begin_of_text|><|start_header_id|>user<|end_header_id|>ĊĊ1+1?"
               "<|eot_id|><|start_header_id|>assistant<|end_header_id|>ĊĊ",
               {"<|eot_id|>", "<|end_of_text|>"}, CUT[:-2] + "ĊĊ" + HEADER),
    "gemma3": ("unmarked", "<bos><start_of_turn>userĊ1+1?<end_of_turn>Ċ<start_of_turn>modelĊ",
               {"<eos>", "<end_of_turn>"}, CUT[:-2] + "ĊĊ" + HEADER),
    "phi3": ("unmarked", "<|user|>Ċ1+1?<|end|>Ċ<|assistant|>Ċ",
             {"<|endoftext|>", "<|end|>", "<|user|>"}, CUT[:-2] + "ĊĊ" + HEADER),
    "gpt-oss": ("harmony", "<|start|>user<|message|>1+1?<|end|><|start|>assistant"
                "<|channel|>analysis<|message|>", {"<|return|>", "<|endoftext|>"},
                CUT + "<|end|><|start|>assistant<|channel|>final<|message|>" + HEADER),
    "mistral": ("unmarked", "<s>[INST]Ġ1+1?Ġ[/INST]", {"</s>"}, CUT[:-2] + "ĊĊ" + HEADER),
    "magistral": ("magistral", "<s>[INST]1+1?[/INST][THINK]", {"</s>"},
                  CUT + "[/THINK]ĊĊ" + HEADER),
}  # fmt: skip


@pytest.mark.parametrize("family", families.FAMILIES)
def test_what_a_family_is_shown_token_by_token(family):
    tok = families.tokenizer(family)
    name, prompt, ends, forced = ASKED[family]
    tokens = resolve_tokens(tok)
    ids = prompt_ids(CHAT, tok, tokens.fmt)
    assert tokens.fmt.name == name
    assert pieces(ids, tok).endswith(prompt)
    # gpt-oss has a BOS token, but its template does not write it
    assert ids.count(tok.bos_token_id) == (tok.bos_token_id is not None and family != "gpt-oss")
    assert set(tok.convert_ids_to_tokens(sorted(tokens.eos_ids))) == ends
    assert pieces(tokens.cut_ids, tok) == forced
    assert pieces(ids, tok) and repr(tok.decode(ids)) in tokens.describe(ids)


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("adds_eos", [False, True])
def test_a_text_gets_bos_once_and_no_eos(family, adds_eos):
    tok = families.tokenizer(family, adds_eos)
    tokens = resolve_tokens(tok, {"chat_template": False})
    bos = tok.bos_token or ""
    for text in ("1+1?", f"{bos}1+1?"):
        ids = prompt_ids(text, tok, tokens.fmt)
        assert tok.decode(ids) == f"{bos}1+1?{tokens.fmt.think_open}"


def test_a_hybrid_thinker_that_is_switched_off_thinks_in_its_answer():
    tok, off = families.tokenizer("qwen3"), {"enable_thinking": False}
    with pytest.raises(ValueError, match="switches thinking off.*unmarked"):
        prompt_ids(CHAT, tok, QWEN3, off)
    on = prompt_ids(CHAT, tok, QWEN3, {"enable_thinking": True})
    assert on == prompt_ids(CHAT, tok, QWEN3)
    fmt, _ = choose_format(tok, "unmarked")
    shown = pieces(prompt_ids(CHAT, tok, fmt, off), tok)
    assert shown.endswith("<|im_start|>assistantĊ<think>ĊĊ</think>ĊĊ")


@pytest.mark.parametrize(
    ("end", "shown"),
    [("<think>\nOkay, ", "<think>\nOkay, "), ("<think>", "<think>\n"), ("", "<think>\n")],
)
def test_a_template_may_open_or_prefill_the_thinking(end, shown):
    tok = families.tokenizer("qwen3")
    tok.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}" + end
    said = [{"role": "user", "content": "What is <think> for?"}]  # no opening
    assert tok.decode(prompt_ids(said, tok, QWEN3)) == f"What is <think> for?<|im_end|>{shown}"
    tok.chat_template += "</think>\n\nAnswer:"
    with pytest.raises(ValueError, match="switches thinking off"):
        prompt_ids(said, tok, QWEN3)


def test_a_format_is_asked_for_by_name_or_by_fields():
    tok = families.tokenizer("llama3")
    assert choose_format(tok, "chat")[0] == ThinkingFormat()
    assert choose_format(tok, "auto") == choose_format(tok, None) == choose_format(tok, {})
    made, _ = choose_format(tok, {"header": " So: "})
    assert made == replace(UNMARKED, header=" So: ")
    assert choose_format(tok, {"name": "r1", "header": "\nA:"})[0] == replace(R1, header="\nA:")
    assert not choose_format(characters(markers=()), "unmarked")[0].chat_template
    with pytest.raises(ValueError, match="'r2'; expected 'auto' or one of 'chat'.*; 'r1': DeepS"):
        choose_format(tok, "r2")
    with pytest.raises(ValueError, match="no field 'open'.*think_open"):
        choose_format(tok, {"open": ""})


def test_a_marker_of_several_tokens_ends_a_thinking_however_it_is_cut_into_tokens():
    tok = families.tokenizer("llama3")
    tokens = resolve_tokens(tok, "chat")
    assert tok.tokenize("</think>") == ["<", "/", "think", ">"]
    for text in ("a</think>", "a.</think>\n\n", "a</think>\nb</think>"):
        ids = tok(text, add_special_tokens=False)["input_ids"]
        size = tokens.first_end(ids, True)
        assert tok.decode(ids[:size]).rstrip().endswith("</think>")
        assert tokens.end(ids[:size]) == "closed" and tokens.end(ids[: size - 1]) == ""
        assert tokens.markers(ids) == text.count("</think>")
    ids = tok("a < / think >", add_special_tokens=False)["input_ids"]
    assert tokens.first_end(ids, True) == len(ids) and not tokens.end(ids)
    ended = [*ids, tok.eos_token_id, *ids]
    assert (
        tokens.first_end(ended, True) == len(ids) + 1 and tokens.end(ended[: len(ids) + 1]) == "eos"
    )


def test_an_unmarked_thinking_ends_with_its_turn_and_the_answer_follows_its_text():
    tok = families.tokenizer("llama3")
    tokens = resolve_tokens(tok)
    ids = [*tok("2.", add_special_tokens=False)["input_ids"], tok.eos_token_id]
    assert tokens.end(ids) == "closed" and tokens.kept(ids) == len(ids) - 1
    assert tokens.kept(ids[:-1]) == len(ids) - 1 and tokens.kept([]) == 0
    assert tokens.forced("closed", 2, 2) == tokens.header_ids
    assert tokens.markers(ids) == 0 and tokens.stop_text == ""


def test_a_pad_that_is_an_ordinary_token_stays_in_a_text():
    tok = families.tokenizer("llama3")
    assert tok.pad_token == "!"
    tokens = resolve_tokens(tok)
    ids = tok("5!", add_special_tokens=False)["input_ids"]
    assert tokens.decode([*ids, tok.eos_token_id]) == "5!"
    assert text_and_ends(tokens, [*ids, tok.eos_token_id]) == ("5!", [1, 2, 2])


def test_a_verifier_looks_for_the_formats_own_marker_and_header():
    plain = ExactVerifier()
    assert fit_verifier(plain, R1) is plain
    assert fit_verifier(plain, UNMARKED).think_close is None
    said = "...<|end|><|start|>assistant<|channel|>final<|message|>**Final Answer**\n\\boxed{4}"
    assert plain.grade([said], ["4"])[0].score == 0
    assert fit_verifier(plain, HARMONY).grade([said], ["4"])[0].score == 1
    assert (
        fit_verifier(plain, UNMARKED).grade(["**Final Answer**\n\\boxed{4}"], ["4"])[0].score == 1
    )
    own = ExactVerifier(think_close=None)
    assert fit_verifier(own, R1) is own
    made = replace(R1, header="\nSo: ")
    assert fit_verifier(own, made).header == "So:" and own.header != "So:"
