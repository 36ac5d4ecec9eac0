"""Hostile text on a page: it is shown, and cannot act."""

from anytime_lab.page import escaped, plain, short


def test_text_keeps_its_length_and_loses_its_powers():
    text = "a\x1b[31mb\u202ec\x00\x9b\ud800\u2066\ttab\n"
    shown = plain(text)
    assert len(shown) == len(text)
    assert shown == "a␛[31mb\ufffdc␀\ufffd\ufffd\ufffd\ttab\n"
    shown.encode()
    assert plain("שלום é ∑ 👩‍🔬") == "שלום é ∑ 👩‍🔬"
    assert escaped("<a href='x'>&") == "&lt;a href=&#x27;x&#x27;&gt;&amp;"


def test_a_line_of_a_megabyte_is_cut():
    cut = escaped("x" * 1_000_000)
    assert len(cut) < 20_100 and "980,000 characters left out" in cut
    assert len(short("y" * 1_000_000)) == 60
