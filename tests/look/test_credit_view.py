"""The credit view: hand-worked trees, columns and sentences, hostile and broken files."""

import re

import pytest
from made_runs import told, write_tree

from anytime_lab.look.credit_view import Credit, tint
from anytime_lab.read.credit import question_of, signed, told_credit
from anytime_lab.store.rollouts import rollout_path

HOSTILE = (
    "<img src=x onerror=alert(1)></script><script>alert(2)</script>\\(x^2\\) $y$ \x1b[31m\u202e"
)


@pytest.fixture
def made(tmp_path):
    write_tree(tmp_path / "ar", 1)
    write_tree(tmp_path / "ar", 25)
    return tmp_path / "ar"


def spans(html):
    """(depth, sign, title, text) of every coloured stretch, per column."""
    columns = html.split("<div><p><b>")[1:]
    found = []
    for column in columns:
        pairs = re.findall(r'<span style="([^"]*)" title="([^"]*)"[^>]*>(.*?)</span>', column, re.S)
        found.append(pairs)
    return found


def test_the_tokens_take_the_advantages_worked_by_hand(made):
    view = Credit([made])
    view.thinking.value = 0
    left, right = spans(view.tokens.value)
    # R .65 .65 .5, V2 .45 .45 .375, V1 0 0 1/6: see test_rollouts
    titles = [title for _, title, _ in left]
    assert titles == [
        "tokens 1–4: advantage +0.200",
        "tokens 5–8: advantage +0.350",
        "tokens 9–12: advantage +0.264",
    ]
    assert [text for _, _, text in left] == ["w0 w1 w2 w3 ", "w4 w5 w6 w7 ", "w8 w9 w10 w11 "]
    assert {title.split(": ")[1] for _, title, _ in right} == {"advantage +0.250"}
    # one scale: the deepest colour is the largest of both columns
    assert tint(0.35, 0.35) in left[1][0] and ",0.6)" in left[1][0]
    assert len({style for style, _, _ in right}) == 1 and right[0][0] != left[1][0]


def test_a_thinking_that_ended_has_no_tokens_for_later_budgets(made):
    view = Credit([made])
    view.thinking.value = 1
    left, _ = spans(view.tokens.value)
    assert [title for _, title, _ in left][-1].startswith("tokens 9–10")
    assert all("dotted" in style for style, title, _ in left if "−" in title)
    write_tree(made, 30, lengths=(12, 3))
    view = Credit([made])
    view.thinking.value = 1
    left, _ = spans(view.tokens.value)
    assert len(left) == 1 and "ended: later budgets train no token" in view.tokens.value
    view.live.move_to(12)
    assert "no token of it is trained for this budget" in view.position.value
    assert "no token" in view.numbers.value
    assert [note.text for note in view.live.figure.layout.annotations] == ["ended"]
    assert view.live.figure.layout.shapes[0].x0 == 3


def test_the_figure_shows_returns_baselines_and_advantages(made):
    view = Credit([made])
    view.thinking.value = 0
    total, progress, group, brpo, left, right = view.live.figure.data
    assert total.y == pytest.approx((0.65, 0.65, 0.5)) and total.x == (4, 8, 12)
    assert group.y == pytest.approx((0.45, 0.45, 0.375))
    assert progress.y == pytest.approx((0, 0, 1 / 6))
    assert brpo.y == pytest.approx((0.45, 0.3, 2 / 3 / 6 + 0.125))
    assert left.x == (0, 4, 8, 12)
    assert left.y == pytest.approx((0.2, 0.35, 0.26389, 0.26389), abs=1e-4)
    assert right.y == pytest.approx((0.25,) * 4)
    assert len({trace.line.color for trace in view.live.figure.data}) == 6
    assert [tuple(t.y) for t in view.figure().data] == [tuple(t.y) for t in view.live.figure.data]


def test_the_line_is_one_through_both_figures_and_speaks_tokens(made):
    view = Credit([made])
    view.thinking.value = 0
    assert [words for _, words in view.trees._stops] == ["4 tokens", "8 tokens", "12 tokens"]
    assert left_riding(view) == [[4, 0.65, "0.65"], [8, 0.65, "0.65"], [12, 0.5, "0.50"]]
    view.trees.move_to(12)
    assert view.live.stop == 12 and "At 12 tokens: score 1.00" in view.position.value
    view.live.move_to(4)
    assert view.trees.stop == 4 and "Summaries at 4 tokens" in view.leaves.value
    view.thinking.value = 1
    assert view.trees.stop == view.live.stop == 4


def left_riding(view):
    return [list(stop) for stop in view.live.figure.data[0].meta["riding"]]


def test_the_tree_has_a_trunk_for_each_method_and_a_leaf_for_each_summary(made):
    view = Credit([made])
    view.thinking.value = 0
    *trunks, branches, leaves = view.trees.figure.data
    assert [(t.name, t.x[0], t.x[-1]) for t in trunks[:3]] == [
        ("BRPO", 0, 4), ("BRPO", 4, 8), ("BRPO", 8, 12)
    ]  # fmt: skip
    assert len(trunks) == 6 and len({t.line.color for t in trunks[3:]}) == 1
    widths = [t.line.width for t in trunks[:3]]
    assert widths[1] > widths[2] > widths[0]  # +0.35, +0.26, +0.20
    assert len(leaves.x) == 3 * 2 and set(branches.x[::3]) == {4, 8, 12}
    assert leaves.marker.symbol[:2] == ("x-thin",) * 2 and leaves.marker.symbol[-1] == "circle"


def test_the_sentence_reads_what_one_sees(made):
    view = Credit([made])
    view.thinking.value = 0
    said = view.sentence.value
    assert "The summaries score 0.00, 0.50, 1.00 at 4, 8, 12 tokens." in said
    assert "Under BRPO tokens 5–8 get the most (+0.35), tokens 1–4 the least (+0.20)." in said
    assert "Under GRPO (final score only) all 12 tokens get +0.25." in said
    assert "The score rises most in tokens 5–8." in said
    assert "(V1 0.17 of R 0.50), so BRPO gives tokens 9–12 +0.26; GRPO" in said
    assert "Problem: What is 1?" in said


def test_a_group_that_scores_alike_says_that_nothing_is_learnt(tmp_path):
    write_tree(tmp_path / "run", 1, scores=((1, 1, 1), (1, 1, 1)))
    view = Credit([tmp_path / "run"])
    assert "nothing is learnt from this thinking" in view.sentence.value
    assert "all are 0.00" in view.tokens.value
    assert all(style == "" for style, _, _ in spans(view.tokens.value)[0])


def test_a_grpo_run_says_that_it_has_one_budget(tmp_path):
    write_tree(tmp_path / "grpo", 1, scores=((1,), (0,)), budgets=(12,), prior=(1.0,))
    view = Credit([tmp_path / "grpo"])
    view.thinking.value = 1
    assert "at one budget only, 12 tokens" in view.sentence.value
    assert "All 10 tokens are credited −0.50 alike" in view.sentence.value


def test_controls_choose_step_problem_thinking_and_methods(made):
    write_tree(made, 50, scores=((0, 0, 1), (0, 0, 0)), problems=(3, 0))
    view = Credit({"mine": made})
    assert [value for _, value in view.step.options] == [1, 25, 50] and view.step.value == 50
    assert [value for _, value in view.problem.options] == [3, 0]
    assert view.thinking.value == 0  # its score moves
    view.left.value = "group"
    left, _ = spans(view.tokens.value)
    assert [t.split("advantage ")[1] for _, t, _ in left] == ["+0.250"] * 3
    assert "group baseline alone" in view.numbers.value
    header, *rows = re.findall(r"<tr>(.*?)</tr>", view.numbers.value)
    assert [re.findall(r"<td>(.*?)</td>", row)[3:] for row in rows][0][-2:] == ["+0.250", "+0.500"]
    assert len({row.count("<t") for row in (header, *rows)}) == 1  # a cell for each title
    view.step.value = 1
    assert view.live.figure.data[0].y == pytest.approx((0.65, 0.65, 0.5))
    view.live.move_to(8)
    assert "At 8 tokens: score 0.50, return R 0.650" in view.position.value
    assert 'class="here"' in view.tokens.value
    assert "Summaries at 8 tokens" in view.leaves.value
    before = view.live
    view.right.value = "none"
    assert view.live is before and before.figure.data[5].y[0] == pytest.approx(0.65)
    controls = (view.run, view.step, view.problem, view.thinking, view.left, view.right)
    assert all(control.description for control in controls)


def test_text_of_models_and_problems_cannot_act(tmp_path):
    folder = tmp_path / "run"
    write_tree(folder, 1, text=HOSTILE)
    view = Credit({HOSTILE: folder})
    parts = (view.prompt, view.sentence, view.tokens, view.position, view.leaves, view.numbers)
    html = "".join(part.value for part in parts)
    assert html.count("&lt;img") >= 3
    for bad in ("<img", "<script", "</script", "\x1b", "\u202e"):
        assert bad not in html
    assert all("mathjax_ignore" in part.value for part in parts)
    assert "<img" not in view.figure().to_json() + view.trees.figure.to_json()
    write_tree(folder, 2, text="x" * 2_000_000)
    assert len(Credit([folder]).tokens.value) < 80_000


def test_folders_without_rollouts_are_sentences(tmp_path, made):
    assert "No run folders were given." in Credit([]).notes.value
    assert "is not a folder" in Credit([tmp_path / "nowhere"]).notes.value
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "metrics.jsonl").write_text("")
    assert "save_rollouts_steps above 0" in Credit([tmp_path / "old"]).notes.value
    (tmp_path / "new" / "rollouts").mkdir(parents=True)
    assert "holds no rollouts yet" in Credit([tmp_path / "new"]).notes.value
    found = Credit(tmp_path)
    assert list(found.folders) == ["ar"] and "no rollouts yet" in found.notes.value


def test_a_broken_step_is_a_sentence_and_the_others_open(made):
    rollout_path(made, 30).write_bytes(b"no")
    view = Credit([made])
    assert "is damaged" in view.notes.value and view.table is None
    assert "No rollout is open" in told(view.picture())
    view.left.value = "none"
    view.step.value = 25
    assert view.table is not None and "damaged" not in view.notes.value
    rollout_path(made, 1).unlink()  # a run that began anew
    view.step.value = 1
    assert "does not exist" in view.notes.value


def test_missing_scores_stay_dashes(tmp_path):
    nan = float("nan")
    write_tree(tmp_path / "run", 1, scores=((nan, 1, 1), (0, 0, nan)))
    view = Credit([tmp_path / "run"])
    view.thinking.value = 0
    assert "score —, 1.00, 1.00 at 4, 8, 12" in view.sentence.value
    view.live.move_to(4)
    assert "no score" in view.position.value and "abstained" in view.leaves.value


def test_numbers_are_signed_with_the_true_minus():
    assert [signed(v) for v in (0.123, -0.5, 0.0, -0.0001)] == ["+0.12", "−0.50", "0.00", "0.00"]


def test_two_methods_are_wanted(made):
    with pytest.raises(ValueError, match="choose two of brpo, grpo"):
        Credit([], methods=("brpo",))
    with pytest.raises(ValueError, match="methods has 'ppo'; choose two of brpo, grpo"):
        Credit([made], methods=("brpo", "ppo"))


def test_one_method_twice_is_told_and_drawn_once(made):
    view = Credit([made], methods=("brpo", "brpo"))
    assert told_credit(view.table, view.methods).count("Under BRPO") == 1
    assert len(view.live.figure.data) == 5


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("<|im_start|>user\nReach 4 with 1, 3.<|im_end|>\n<|im_start|>assistant\n<think>\n",
         "Reach 4 with 1, 3."),
        ("<s>[INST] 1 + 1? [/INST]", "1 + 1?"),
        ("What is 1?", "What is 1?"),
        ("<|im_start|>system\nA very long word to the system<|im_end|><|im_start|>user\n2?",
         "2?"),
        ("", ""),
    ],
)  # fmt: skip
def test_the_question_is_found_in_the_format_of_its_model(prompt, asked):
    assert question_of(prompt) == asked
