"""Numbers, durations, names and links as the page prints them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from markupsafe import Markup, escape

__all__ = [
    "decimals",
    "duration",
    "few",
    "first_sentence",
    "label",
    "number",
    "safe_url",
    "shorten",
    "slug",
    "tidy",
    "whole",
]

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: object, *, decimals: int | None = None, signed: bool = False) -> str:
    """A value as a reader expects it: four significant digits, a real minus, no exponents.

    Anything that is not a number comes back as its own text; None and NaN as a dash.

    >>> number(0.88591), number(-1234567), number(2.5e-07), number(None), number("conv")
    ('0.8859', '−1,234,567', '2.5×10⁻⁷', '—', 'conv')
    >>> number(1.5, decimals=2, signed=True), number(float("-inf"))
    ('+1.50', '−∞')
    >>> number(9.996e-5)
    '1×10⁻⁴'
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "—"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    size = abs(value)
    if math.isinf(size):
        text = "∞"
    elif decimals is not None:
        text = f"{size:,.{decimals}f}"
    elif isinstance(value, int) or 1000 <= size < 1e15:
        text = f"{size:,.0f}"
    elif size == 0 or 1e-4 <= size < 1000:
        text = f"{size:.4g}"
    else:
        mantissa, exponent = f"{size:.2e}".split("e")
        text = f"{float(mantissa):g}×10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    if value < 0 and any(digit in text for digit in "123456789∞"):
        return f"−{text}"
    return f"+{text}" if signed and value > 0 else text


def decimals(values: Iterable[object]) -> int | None:
    """Choose the decimals with which the values of a column align, four digits each.

    None where that is a matter of each value alone: whole numbers, text, very small or large ones.

    >>> decimals([0.889, 0.8893, 0.9]), decimals([12.5, 3, None]), decimals([1e-9, 0.5])
    (4, 1, None)
    """
    magnitudes = [abs(v) for v in values if isinstance(v, float) and math.isfinite(v) and v != 0]
    if not magnitudes or min(magnitudes) < 1e-4 or max(magnitudes) >= 1000:
        return None
    places = [len(f"{v:.4g}".partition(".")[2]) for v in magnitudes]
    return min(max(places), max(0, 3 - math.floor(math.log10(max(magnitudes)))))


def few(count: float) -> str:
    """A mean number of things: one decimal where there are few.

    >>> few(1.425), few(0.04), few(12.7)
    ('1.4', '0.04', '13')
    """
    return f"{count:.0f}" if count >= 10 else f"{count:.2g}" if count < 0.1 else f"{count:.1f}"


def duration(seconds: float) -> str:
    """Seconds in the two units that matter.

    >>> duration(0.42), duration(75), duration(7265), duration(float("nan"))
    ('0.4 s', '1 min 15 s', '2 h 1 min', '—')
    """
    if not math.isfinite(seconds):
        return "—"
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def slug(key: str) -> str:
    """A key as an identifier and part of a file name: letters, digits, dashes.

    >>> slug("C1"), slug('a"><b'), slug("../.."), slug("")
    ('C1', 'a-b', 'x', 'x')
    """
    return re.sub(r"[^A-Za-z0-9]+", "-", key).strip("-")[:40] or "x"


def label(key: str) -> str:
    """A key of ``about`` as a heading: ``total_time`` becomes ``Total time``.

    >>> label("total_time"), label("PyTorch"), label("")
    ('Total time', 'PyTorch', '')
    """
    words = key.replace("_", " ")
    return words[:1].upper() + words[1:]


def safe_url(url: str) -> str:
    """The address if it is a plain web address, else nothing; the page links only what passes.

    >>> safe_url("https://arxiv.org/abs/1502.03167")
    'https://arxiv.org/abs/1502.03167'
    >>> safe_url("javascript:alert(1)"), safe_url(" https://a.b"), safe_url("https:///x")
    ('', '', '')
    """
    if not url.isprintable() or " " in url:
        return ""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return url if parts.scheme in ("http", "https") and parts.netloc else ""


def shorten(text: str, limit: int = 96) -> str:
    """Cut at a word, with an ellipsis, where a text is longer than ``limit``.

    >>> shorten("with batch normalization", 12)
    'with batch…'
    """
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    cut = text[:limit]
    head = cut.rsplit(" ", 1)[0]
    return (head if len(head) > limit // 2 else cut).rstrip(" ,;:.") + "…"


def tidy(text: str) -> str:
    """Give numbers a real minus and powers of ten, and keep a percent sign on their line.

    >>> tidy("87 % of 5 %"), tidy("-0.3 [-1, 2], C1-2")
    ('87\\xa0% of 5\\xa0%', '−0.3 [−1, 2], C1-2')
    >>> tidy("1e-5 and -2.5e-10")
    '10⁻⁵ and −2.5×10⁻¹⁰'
    """
    text = _POWER.sub(_power, text.replace(" %", "\u00a0%"))
    return re.sub(r"(?<!\w)-(?=\d)", "−", text)


_POWER = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)e([+-]?\d+)(?![\w.]*\w)")


def _power(match: re.Match[str]) -> str:
    mantissa, exponent = match.groups()
    power = f"10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    return power if mantissa == "1" else f"{mantissa}×{power}"


def whole(text: str) -> Markup:
    """Tidy a heading, and keep a name with a number on one line.

    >>> whole("A step of LeNet-5, and N(0, 1) & more")
    Markup('A step of <span class="nowrap">LeNet-5,</span> and N(0,\\xa01) &amp; more')
    """
    text = tidy(text).replace("N(0, 1)", "N(0,\u00a01)")
    return Markup(
        re.sub(r"\b[A-Za-z]+-\d\S*", r'<span class="nowrap">\g<0></span>', str(escape(text)))
    )


def first_sentence(text: str) -> str:
    """Cut a text after its first sentence.

    >>> first_sentence("Use nk.freeze (Li et al. 2018). Then test.")
    'Use nk.freeze (Li et al. 2018).'
    """
    return re.split(r"(?<=[.!?])\s+(?=[A-ZΑ-Ω])", text.strip(), maxsplit=1)[0]
