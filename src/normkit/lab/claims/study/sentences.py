"""Fill sentences with effects and words, and leave out those that nothing is known for yet."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping

from normkit.lab.claims.study.endpoints import Effect
from normkit.lab.claims.study.units import UNKNOWN

__all__ = ["fill", "names_in"]

_BETWEEN = re.compile(r"(?<=[.?!]) +(?=\S)")


def names_in(template: str) -> list[str]:
    """Return the names in braces, in order.

    >>> names_in("{gain:plain} points, {loss} nats")
    ['gain', 'loss']
    """
    return [name for _, name, _, _ in string.Formatter().parse(template) if name]


def fill(template: str, values: Mapping[str, Effect | str]) -> str:
    """Fill a template sentence by sentence.

    In place of a sentence that names something unknown, the effects of it that are known stand as
    questions with their answers.

    >>> values = {"gain": Effect(None), "loss": "1.2 nats"}
    >>> fill("It gains {gain} points. The loss is {loss}.", values)
    'The loss is 1.2 nats.'
    """
    sentences = []
    for sentence in _BETWEEN.split(template):
        names = names_in(sentence)
        if any(map(_is_unknown, (values[name] for name in names))):
            effects = [each for name in names if isinstance(each := values[name], Effect)]
            sentences += [each.answer for each in effects if each.of is not None]
        else:
            sentences.append(sentence.format(**values))
    return " ".join(sentences)


def _is_unknown(value: Effect | str) -> bool:
    return value.of is None if isinstance(value, Effect) else UNKNOWN in value
