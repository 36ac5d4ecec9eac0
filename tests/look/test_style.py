"""What figures share: styles of runs, names at line ends, ticks, and the files they go to."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest

from anytime_lab.look.figures import GAIN, LOSS
from anytime_lab.look.live import JS
from anytime_lab.look.style import (
    COLOURS,
    DASHES,
    GLYPHS,
    LABEL_CHARACTERS,
    MARKERS,
    QUIET,
    apart,
    budget_ticks,
    label_lines,
    latex_table,
    log_ticks,
    point_ticks,
    run_styles,
    safe_text,
    short_text,
)


def test_runs_differ_by_colour_dash_and_marker():
    styles = list(run_styles([str(i) for i in range(12)]).values())
    assert len({(s.colour, s.dash) for s in styles}) == 12
    first = styles[:5]
    for of in (
        "colour",
        "dash",
        "marker",
    ):  # each by itself, for a grey print or a colour-blind eye
        assert len({getattr(s, of) for s in first}) == 5
    assert len(set(DASHES)) == len(DASHES) and len(set(MARKERS)) == len(MARKERS) == len(GLYPHS)


def contrast(one, other):
    """The ratio of two colours by WCAG 2.2."""

    def light(colour):  # relative luminance
        colour = "#" + "".join(2 * c for c in colour[1:]) if len(colour) == 4 else colour
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


PAPER = {"light": "#ffffff", "dark": "#111111"}


def text_colours(theme):
    """What the views' own rules colour text with, by selector."""
    css, dark = (JS / "view.css").read_text(), '[data-jp-theme-light="false"]'
    found = {}
    for selector, body in re.findall(r"([^{}]+)\{([^{}]*)\}", css):
        given = re.findall(r"(?:^|[; ])color: (#[0-9a-f]{3,6})\b", body)
        named = selector.strip().removeprefix(dark).strip()
        if given and (theme == "dark" or dark not in selector):
            found[named] = given[-1]
    return found


@pytest.mark.parametrize("theme", PAPER)
def test_lines_have_3_to_1_and_text_4_and_a_half(theme):
    for colour in (*COLOURS, QUIET, GAIN, LOSS):
        assert contrast(colour, PAPER[theme]) >= 3, colour
    text = text_colours(theme)
    assert {".anytime-lab .rest", ".anytime-lab .right", ".anytime-lab .wrong"} <= set(text)
    assert all(contrast(colour, PAPER[theme]) >= 4.5 for colour in text.values()), text


@pytest.mark.parametrize("theme", [0, 1])
def test_the_page_can_be_read_in_both_themes(theme):
    css, script = ((JS / f"report.{kind}").read_text() for kind in ("css", "js"))
    ink, soft, paper = (
        re.findall(rf"--{name}: (#[0-9a-f]+)", css)[theme] for name in ("ink", "soft", "paper")
    )
    assert contrast(ink, paper) >= 4.5 and contrast(soft, paper) >= 4.5
    quiet = re.search(r"color: dark.matches \? '(#\w+)' : '(#\w+)'};\n  out.modebar", script)
    assert contrast(quiet[2 - theme], paper) >= 3
    assert all(contrast(colour, paper) >= 3 for colour in (*COLOURS, QUIET))


def test_few_budgets_are_their_own_ticks():
    assert budget_ticks([24, 8, 16])["tickvals"] == [8, 16, 24]
    assert "tickvals" not in budget_ticks(range(1, 33))


def test_ticks_of_points_have_signs():
    told = point_ticks(-0.12, 0.21)
    assert told["ticktext"][:4] == ["−15", "−10", "−5", "0"]
    assert told["ticktext"][-1] == "+25"
    assert point_ticks(-0.004, 0.004)["ticktext"][-1].startswith("+0.")


def test_safe_text_keeps_ordinary_names():
    assert safe_text("AR-uniform, 75 %") == "AR-uniform, 75 %"


def test_long_names_keep_the_end_that_tells_them_apart():
    ours, theirs = "AnytimeReasoner-uniform", "AnytimeReasoner-uniform at GRPO's wall time"
    assert label_lines(ours) == [ours]
    assert label_lines(theirs) == [ours, "at GRPO's wall time"]
    a, b = short_text("x" * 80 + " one"), short_text("x" * 80 + " two")
    assert a != b and a.endswith("one") and "…" in a


@pytest.mark.parametrize("size", [1, 24, 25, 26, 47, 48, 49, 200])
@pytest.mark.parametrize("letters", ["a", "ab ", "a-", "word and "])
def test_a_label_has_at_most_two_short_lines(size, letters):
    name = (letters * size)[:size].strip() or "a"
    told = label_lines(name)
    assert 1 <= len(told) <= 2
    assert all(0 < len(line) <= LABEL_CHARACTERS for line in told)
    if len(name) <= LABEL_CHARACTERS:
        assert told == [name]
    elif "…" not in "".join(told):  # nothing but a space is lost
        assert "".join(told).replace(" ", "") == name.replace(" ", "")


def test_blocks_that_fit_stay_and_others_share_the_way():
    assert apart([1, 5], [1, 1], 0, 10) == [1, 5]
    assert apart([5, 5], [1, 1], 0, 10) == pytest.approx([5, 6])
    assert apart([0, 5], [2, 4], 0, 10) == pytest.approx([1, 5])
    assert apart([9.9, 10], [1, 1], 0, 10) == pytest.approx([8.5, 9.5])  # not past the axis


def test_blocks_never_overlap_and_stay_inside():
    rng = np.random.default_rng(0)
    for _ in range(200):
        n = int(rng.integers(1, 8))
        wanted = np.sort(rng.random(n)).tolist()
        sizes = (0.12 * rng.random(n) + 0.01).tolist()
        centres = apart(wanted, sizes, 0.0, 1.0)
        edges = [(c - s / 2, c + s / 2) for c, s in zip(centres, sizes, strict=True)]
        assert edges[0][0] >= -1e-9 and edges[-1][1] <= 1 + 1e-9
        assert all(a[1] <= b[0] + 1e-9 for a, b in itertools.pairwise(edges))


def test_logarithmic_ticks_keep_first_and_last_budget():
    ticks = log_ticks(list(range(250, 8001, 250)))["tickvals"]
    assert ticks[0] == 250 and ticks[-1] == 8000
    assert all(b / a >= 1.2 for a, b in itertools.pairwise(ticks))


def test_latex_text_is_escaped():
    frame = pd.DataFrame({"run": ["a_b & 50% \\x{}"], "accuracy": [0.12345], "step": [None]})
    body = latex_table(frame).splitlines()[4]
    assert body == r"a\_b \& 50\% \textbackslash x\{\} & $0.123$ & -- \\"
