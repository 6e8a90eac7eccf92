"""Each Chinese page says what the English page beside it says, as far as a machine can tell.

For each `X.zh.md` beside `X.md`: levels of the headings, code blocks, numbers and links are the
same. Numbers are compared as a bag, because a Chinese sentence has another order; `.5` is 0.5 and
`1,000` is 1000. Months that English writes as words count as the numbers that Chinese writes.
"""

from __future__ import annotations

import re
from calendar import month_name
from collections import Counter
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.zh.md"), *(ROOT / "docs").rglob("*.zh.md")]
FENCE = re.compile(r"^( *)(`{3,}|~{3,})([^\n`]*)\n(.*?)^\1\2`*~*[ \t]*$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#{1,6}) +(.*?)#*$", re.MULTILINE)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+[^)]*)?\)")
BARE = re.compile(r"<(https?://[^>\s]+)>|(?<![(<\w])(https?://[\w./#?=&%~:+-]*[\w/#=&%~+-])")
NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?:\.\d+)*|\.\d+")
HAN = r"\u4e00-\u9fff"
OTHER_WORDS = {
    "批量规范化": "批量归一化",
    "批规范化": "批量归一化",
    "批归一化": "批量归一化",
    "批标准化": "批量归一化",
    "批量标准化": "批量归一化",
    "层规范化": "层归一化",
    "组规范化": "组归一化",
    "实例规范化": "实例归一化",
    "滑动平均": "移动平均",
    "置信度区间": "置信区间",
}


class Page(NamedTuple):
    """What is compared of a page."""

    headings: list[tuple[int, str]]
    blocks: list[str]
    numbers: Counter[str]
    links: Counter[str]
    prose: str


def read(text: str) -> Page:
    """Take a page apart. What a comment says of the page is no part of it."""
    blocks = [f"{match[3].strip()}\n{match[4]}" for match in FENCE.finditer(text)]
    prose = re.sub(r"<!--.*?-->", "", FENCE.sub("", text), flags=re.DOTALL)
    headings = [(len(match[1]), match[2].strip()) for match in HEADING.finditer(prose)]
    targets = [*LINK.findall(prose), *("".join(match) for match in BARE.findall(prose))]
    links = Counter(_target(each) for each in targets)
    plain = BARE.sub("", LINK.sub("]", prose))
    for month, name in enumerate(month_name[1:], 1):
        plain = re.sub(rf"(?<=\d ){name}\b|\b{name}(?= \d)", str(month), plain)
    numbers = Counter(_number(each) for each in NUMBER.findall(plain))
    return Page(headings, blocks, numbers, links, plain)


def _target(target: str) -> str:
    """A link without the language; the anchor of a page is a heading, which has another name."""
    if "://" in target:
        return target
    path, anchor, _ = target.partition("#")
    return re.sub(r"\.zh(\.\w+)$", r"\1", path) + (anchor and "#…")


def _number(number: str) -> str:
    plain = number.replace(",", "")
    return f"0{plain}" if plain.startswith(".") else plain


def differences(english: str, chinese: str) -> list[str]:
    """Say in what two pages differ, most telling first."""
    one, other = read(english), read(chinese)
    found = []
    for index, (left, right) in enumerate(zip_longest(one.headings, other.headings), 1):
        if left is None or right is None or left[0] != right[0]:
            found.append(f"heading {index}: English {_shown(left)}, Chinese {_shown(right)}")
            break  # those behind it are out of step
    for index, (block, its) in enumerate(zip_longest(one.blocks, other.blocks), 1):
        if block != its:
            lines = zip_longest((block or "").splitlines(), (its or "").splitlines())
            number, pair = next((n, pair) for n, pair in enumerate(lines) if pair[0] != pair[1])
            where = "its language" if number == 0 else f"line {number}"
            found.append(f"code block {index}, {where}: English {pair[0]!r}, Chinese {pair[1]!r}")
            if block is None or its is None:
                break
    for what, left, right in (
        ("numbers", one.numbers, other.numbers),
        ("links", one.links, other.links),
    ):
        found += [
            f"{what} only in {language}, or more often: {_listed(more)}"
            for language, more in (("English", left - right), ("Chinese", right - left))
            if more
        ]
    return found


def _shown(heading: tuple[int, str] | None) -> str:
    return f"'{'#' * heading[0]} {heading[1]}'" if heading else "has no more"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{each} (×{n})" if n > 1 else each for each, n in sorted(counts.items()))


def style(chinese: str) -> list[str]:
    """Say what a reader stumbles over: half-width punctuation, a second word for one thing.

    A word in “ ” or 《 》 is a quotation.
    """
    prose = re.sub(r"`[^`\n]*`", "`x`", read(chinese).prose)
    found = [
        f"half-width punctuation in: …{match[0].strip()}…"
        for match in re.finditer(rf".{{0,12}}[{HAN}][,;:?!].{{0,8}}", prose)
    ]
    found += [
        f"half-width full stop in: …{match[0].strip()}"
        for match in re.finditer(rf".{{0,12}}[{HAN}]\.(?=\s|$)", prose, re.MULTILINE)
    ]
    spoken = re.sub(r"“[^”]*”|《[^》]*》", "", prose)
    found += [
        f"{word}: write {better}, as the other pages do"
        for word, better in OTHER_WORDS.items()
        if word in spoken
    ]
    if len(re.findall(rf"[{HAN}]", prose)) < 40:
        found.append("hardly any Chinese")
    return found


def report(path: Path, found: Iterable[str]) -> str:
    """Format what was found in a page."""
    return "\n  ".join((f"{path.relative_to(ROOT)}:", *found))


@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_chinese_page_says_what_the_english_says(path: Path) -> None:
    english = path.with_name(path.name.replace(".zh.md", ".md"))
    assert english.is_file(), f"{path.relative_to(ROOT)} has no {english.name} beside it"
    chinese = path.read_text(encoding="utf-8")
    found = differences(english.read_text(encoding="utf-8"), chinese) + style(chinese)
    assert not found, report(path, found)


@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_links_of_a_chinese_page_lead_somewhere(path: Path) -> None:
    prose = FENCE.sub("", path.read_text(encoding="utf-8"))
    local = {link.partition("#")[0] for link in LINK.findall(prose) if "://" not in link}
    lost = sorted(link for link in local if link and not (path.parent / link).exists())
    assert not lost, report(path, (f"link to what is not there: {each}" for each in lost))


@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_a_chinese_page_leads_to_chinese_pages(path: Path) -> None:
    """Where there is one; but for the link to the page's own English."""
    prose = FENCE.sub("", path.read_text(encoding="utf-8"))
    local = {link.partition("#")[0] for link in LINK.findall(prose) if "://" not in link}
    english = path.name.replace(".zh.md", ".md")
    better = [
        f"{link}: there is {chinese}"
        for link in sorted(local)
        if link != english
        and (chinese := re.sub(r"(?<!\.zh)\.(md|ipynb)$", r".zh.\1", link)) != link
        and (path.parent / chinese).exists()
    ]
    assert not better, report(path, better)


PAGE = """# Title

Accuracy was .841 after 1,000 steps ([why](lab.md#rules)), 95 % interval [−0.1, 5.2], on 3 May 2026.

## Run

```
normkit lab run C3
```
"""
SEITE = """# 标题

走完 1000 步后精度为 0.841（[原因](lab.zh.md#规则)），95 % 置信区间为 [−0.1, 5.2]，
2026 年 5 月 3 日测得。
这一页只用来检验上面的函数，所以写得够长就可以了，不必有什么内容。

## 运行

```
normkit lab run C3
```
"""


def test_a_translation_has_no_differences() -> None:
    assert differences(PAGE, SEITE) == []
    assert style(SEITE) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("## 运行", "### 运行", "heading 2: English '## Run', Chinese '### 运行'"),
        ("## 运行\n", "", "heading 2: English '## Run', Chinese has no more"),
        ("run C3", "run C4", "code block 1, line 1: English 'normkit lab run C3', Chinese 'n"),
        ("```\nnormkit", "```sh\nnormkit", "code block 1, its language: English '', Chinese 'sh'"),
        ("0.841", "0.84", "numbers only in English, or more often: 0.841"),
        ("5 月", "六月", "numbers only in English, or more often: 5"),
        ("5.2]", "5.2]（3 和 3）", "numbers only in Chinese, or more often: 3 (×2)"),
        ("lab.zh.md#规则", "data.md", "links only in English, or more often: lab.md#…"),
        ("精度", "精度,", "half-width punctuation in: …"),
        ("了，不必", "了. 不必", "half-width full stop in: …"),
        ("函数", "批规范化函数", "批规范化: write 批量归一化"),
    ],
)
def test_a_planted_difference_is_named(old: str, new: str, said: str) -> None:
    assert old in SEITE
    changed = SEITE.replace(old, new)
    assert any(each.startswith(said) for each in differences(PAGE, changed) + style(changed))


def test_a_block_that_one_page_lacks_is_named() -> None:
    more = PAGE + "\n```python\nx = 1\n```\n"
    assert differences(more, SEITE)[0] == (
        "code block 2, its language: English 'python', Chinese None"
    )


def test_a_quoted_word_is_no_second_word() -> None:
    assert style(SEITE.replace("函数", "函数（《动手学深度学习》作“批量规范化”）")) == []
