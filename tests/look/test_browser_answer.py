"""Answer now in a real JupyterLab: pressed while it streams, by mouse and by key."""

import pytest

STREAM = ".anytime-lab .model.stream"


def shown(page):
    return page.raw.locator(STREAM).inner_text()


def ready(page, label):
    """The main button, once it says this."""
    button = page.raw.get_by_role("button", name=label, exact=True)
    page.wait(button.count)
    return button


def points(page, count):
    """The traces of the live figure, once it holds so many questions."""
    page.wait(lambda: len(page.live(0).data()[0]["x"]) == count)
    return page.live(0).data()


@pytest.mark.slow
def test_answer_now_is_pressed_while_it_streams_and_it_thinks_on(lab):
    with lab.notebook("10_answer_now", num_problems=5, problem=2, seed=2, rate=20) as page:
        page.run_all(240)
        asked_at = page.live(0).data()[0]["x"]  # the example, asked to the end
        assert "An example" in page.text() and shown(page).count("▼") == len(asked_at)
        right = page.raw.get_by_text("Right answer", exact=True)
        assert not page.raw.get_by_text("Right answer: ").count() and right.count() == 1
        assert asked_at == sorted(asked_at)
        total = asked_at[-1]
        assert total > 90  # long enough to be stopped three times

        # by the button, in the middle of the stream
        ready(page, "Start").click()
        page.wait(lambda: "An example" not in page.text())
        page.wait(lambda: len(shown(page)) > 10)
        first = shown(page)
        page.wait(lambda: len(shown(page)) > len(first))  # it grows: it streams
        ready(page, "Answer now").click()
        ready(page, "Think on")
        asked = points(page, 1)
        (tokens,) = asked[0]["x"]
        assert 0 < tokens < total
        assert sum(sum(bars["y"]) for bars in asked[2:]) == pytest.approx(1)
        assert f"After {tokens} tokens" in page.text()
        stopped = shown(page)
        assert stopped.count("▼") == 1

        # the button keeps the focus: Space thinks on, Space answers
        page.raw.keyboard.press("Space")
        page.wait(lambda: len(shown(page)) > len(stopped))
        page.raw.keyboard.press("Space")
        ready(page, "Think on")
        points(page, 2)

        # in the text, by its own key; no cell is run or scrolled by it
        stopped = shown(page)
        page.raw.locator(STREAM).focus()
        page.raw.keyboard.press("Enter")
        page.wait(lambda: len(shown(page)) > len(stopped))
        page.raw.keyboard.press("Enter")
        ready(page, "Think on")
        curve = points(page, 3)[0]
        assert shown(page).count("▼") == 3

        # as fast as it can to the end, where it answers by itself
        page.raw.get_by_role("slider").last.press("End")  # the speed
        ready(page, "Think on").click()
        ready(page, "Start again")
        assert points(page, 4)[0]["x"] == [*curve["x"], total]
        assert shown(page).count("▼") == 4 and "</think>" in shown(page)
        assert "at the end (closed by itself)" in page.text()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder with a random Llama that spells letters, and its own tokenizer and template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llama")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    spelt = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    spelt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spelt.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=spelt,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<think>", "</think>"],
        chat_template="{{ bos_token }}{% for m in messages %}[INST] {{ m.content }} [/INST]"
        "{% endfor %}",
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), **size, **heads)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_llama_in_a_folder_thinks_and_answers_by_its_own_tokenizer(lab, llama):
    settings = {"ask_at": [0, 8], "num_summaries": 2, "max_summary_tokens": 8, "rate": 20}
    with lab.notebook("10_answer_now", model=str(llama), num_problems=3, **settings) as page:
        page.run_all(240)
        assert page.live(0).data()[0]["x"][:2] == [0, 8]
        assert [n for n in page.tabbed() if "tart" in n] == ["Start", "Restart"]
        ready(page, "Start").click()
        page.wait(lambda: "An example" not in page.text())
        page.wait(lambda: len(shown(page)) > 10)
        ready(page, "Answer now").click()
        ready(page, "Think on")
        (tokens,) = points(page, 1)[0]["x"]
        assert tokens > 0 and f"After {tokens} tokens" in page.text()
        stopped = shown(page)
        ready(page, "Think on").click()
        page.wait(lambda: len(shown(page)) > len(stopped))
        ready(page, "Answer now").click()
        ready(page, "Think on")
        assert points(page, 2)[0]["x"][1] > tokens
