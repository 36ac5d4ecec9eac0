"""The reader of common expressions: its values against sympy's, and what it leaves to sympy."""

import pytest
import sympy
from mpmath import mp

from anytime_lab.verify.algebra import (
    Point,
    Reader,
    TooLargeError,
    UnknownFormError,
    common_factor,
    equal_values,
)

x, y, theta = sympy.symbols("x y theta")
READ = [
    (r"\frac{x^{2}-1}{x+3}", (x**2 - 1) / (x + 3)),
    (r"\frac{1}{2}xy-3", x * y / 2 - 3),
    (r"x/2y", x / (2 * y)),
    (r"-x^2 \cdot -3", 3 * x**2),
    (r"2\frac{1}{3}+x", sympy.Rational(7, 3) + x),
    (r"2\frac{x}{3}", 2 * x / 3),
    (r"\sqrt{x^2+1}\sqrt[3]{5}", sympy.sqrt(x**2 + 1) * 5 ** sympy.Rational(1, 3)),
    (r"\sqrt[3]{-8}", sympy.Integer(-2)),
    (r"(x+1)(y-2)x", (x + 1) * (y - 2) * x),
    (r"2^{-x}y!", 2**-x * sympy.gamma(y + 1)),
    (r"\sin 2x\cos y", sympy.sin(2 * x) * sympy.cos(y)),
    (r"\sin^2 x+\tan^{-1}(y)y", sympy.sin(x) ** 2 + sympy.atan(y) * y),
    (r"\ln x^2-\log_{2}(5)+\log 7", sympy.log(x**2) - sympy.log(5, 2) + sympy.log(7, 10)),
    (r"e^{i\pi x}\exp{y}", sympy.exp(sympy.I * sympy.pi * x) * sympy.exp(y)),
    (r"|x-2||y|", abs(x - 2) * abs(y)),
    (r"\lfloor x\rfloor+\lceil y \rceil", sympy.floor(x) + sympy.ceiling(y)),
    (r"\binom{7}{3}\theta\pi r_{1}", 35 * theta * sympy.pi * sympy.Symbol("r_{1}")),
]


@pytest.mark.parametrize(("text", "expression"), READ, ids=[text for text, _ in READ])
def test_values_are_those_of_sympy(text, expression):
    at = {"x": "1.37", "y": "0.61", "\\theta": "0.8", "r_{1}": "2.5"}
    named = {sympy.Symbol(name.strip("\\")): sympy.Rational(value) for name, value in at.items()}
    with mp.workdps(40):
        value = Reader(text).node.value(Point({name: mp.mpf(v) for name, v in at.items()}))
        expected = sympy.N(expression.subs(named), 40)
        apart = value - mp.mpc(*map(str, expected.as_real_imag()))
        assert abs(apart) < mp.mpf(10) ** -30


@pytest.mark.parametrize("text", [text for text, _ in READ])
def test_an_expression_equals_itself_and_not_a_little_more(text):
    assert equal_values(text, f"0+{text}") is True
    assert equal_values(text, f"{text}+10^{{-30}}") is False


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (r"\ln(a/b)", r"\ln a-\ln b", True),
        (r"\sqrt{ab}", r"\sqrt{a}\sqrt{b}", True),
        (r"\log(a/b)", r"\log a-\log b", True),
        (r"\ln|x|", r"\ln x", False),
        (r"\sqrt{x^2}", "x", False),
        (r"\cos(n\pi)", "(-1)^n", True),
        ("2^{2019}-1", "2^{2019}", False),
        (r"\frac{1}{10^{60}+1}", "10^{-60}", False),
        ("e^{900x}", "(e^{x})^{900}", True),
        ("1/0", "5", None),
    ],
)
def test_equality_is_that_of_real_numbers_to_the_last_digit(one, other, equal):
    assert equal_values(one, other) is equal


@pytest.mark.parametrize(
    "text",
    [r"\int_0^1 x dx", r"\sum_{k=1}^{3} k", "x^2^3", "x 2 3", r"\text{cm}", "A^T", "(x", "x)", ""],
)
def test_what_is_of_another_form_is_left_to_sympy(text):
    with pytest.raises(UnknownFormError):
        Reader(text)


@pytest.mark.parametrize("text", ["9^{9^{9^9}}", "9!!!", "10^{60000}", "2^{x^{10^{9}}}"])
def test_numbers_that_nobody_writes_out_are_refused_at_once(text):
    with pytest.raises(TooLargeError):
        equal_values(text, f"{text}+1")


def test_relations_differ_by_a_constant_factor_or_not_at_all():
    assert abs(common_factor(("3x+6y", "12"), ("x+2y", "4")) - 3) < 1e-40
    assert abs(common_factor(("y", "x"), ("x", "y")) + 1) < 1e-40
    assert common_factor(("2^{200}x+1", "y"), ("2^{200}x", "y")) is None
    assert common_factor(("x^2", "4"), ("x", "2")) is None
