"""From declarations to a claim."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from normkit.errors import OptionError, message
from normkit.lab.claims.claim import SETUP, Arms, Available, Claim, Evidence, Judgement, Preset
from normkit.lab.claims.study.endpoints import Effect, Endpoint
from normkit.lab.claims.study.sentences import fill, names_in
from normkit.lab.findings import TOPICS, AtScale, Chart, Table, Topic

__all__ = ["define"]

Words = Callable[[Evidence], str]


def define(
    *,
    topic: Topic,
    plan: Callable[[Preset, Available], Arms],
    decides: Mapping[str, Endpoint],
    information: Mapping[str, Endpoint] | None = None,
    sentence: str,
    source_setup: Mapping[str, str],
    figures: str,
    at_scale: Sequence[AtScale],
    holds: str,
    practice: str,
    say: Mapping[str, Words] | None = None,
    charts: Sequence[Callable[[Evidence], Chart | None]] = (),
    tables: Sequence[Callable[[Evidence], Table]] = (),
    colours: Mapping[str, str] | None = None,
    rule: str = "95 % t intervals of the paired differences",
    **fields: Any,
) -> Claim:
    """Build the claim that these declarations describe.

    Args:
        topic: the subject of the claim, one of :data:`normkit.lab.findings.TOPICS`.
        plan: usually a :class:`~normkit.lab.claims.study.plan.Plan`.
        decides: the endpoints that must all hold, by the key under which ``sentence`` names them.
        information: endpoints that decide nothing.
        sentence: what was found, with the endpoints in braces, as ``{faster}``
            (:class:`~normkit.lab.claims.study.endpoints.Effect`), and the words of ``say``. The
            number of seeds is added.
        say: further words of the sentence, from the evidence.
        charts: drawn where there is something to draw.
        tables: in order.
        colours: for an arm the name of the colour that it shares with arms of other claims, as
            ``{"BN": WITH}``.
        rule: how the effects are tested, for the page's "decided by".
        source_setup: network, data, steps and figures of the source.
        figures: ours, to stand beside them, with endpoints in braces as in ``sentence``; network,
            data and steps are read from the runs.
        at_scale: what the literature found where networks, data or training were larger.
        holds: when the claim holds and when not, by our own arms; one sentence with braces.
        practice: what to do, likewise.
        **fields: the other fields of :class:`~normkit.lab.claims.claim.Claim`.
    """
    endpoints = {**decides, **(information or {})}
    words = say or {}
    known = endpoints.keys() | words.keys()
    templates = {
        "sentence": sentence, "figures": figures, "holds": holds, "practice": practice,
    }  # fmt: skip
    for name, template in templates.items():
        _check_names(f"{name} of {fields['key']}", template, known)
    if topic not in TOPICS:
        raise OptionError(
            message(
                f"a topic of {fields['key']} among {', '.join(TOPICS)}",
                repr(topic),
                "choose the one under which a reader would look for the claim",
            )
        )
    if set(source_setup) != set(SETUP):
        raise OptionError(
            message(
                f"{', '.join(SETUP)} in the source_setup of {fields['key']}",
                ", ".join(source_setup) or "nothing",
                "give each of them, as the source has it",
            )
        )

    def judge(evidence: Evidence) -> Judgement:
        comparisons = {key: endpoint.compare(evidence) for key, endpoint in endpoints.items()}
        counts = (len(endpoint.of.by_seed(evidence)) for endpoint in decides.values())
        seeds = min(filter(None, counts), default=0)  # of those that anything is known of
        values: dict[str, Effect | str] = {
            **{key: Effect(each) for key, each in comparisons.items()},
            **{key: each(evidence) for key, each in words.items()},
        }
        text = {name: fill(template, values) for name, template in templates.items()}
        outcome = text["sentence"].rstrip(".") or "No effect is known yet"
        drawn = [chart for draw in charts if (chart := draw(evidence))]
        return Judgement(
            sentence=f"{outcome} ({evidence.coverage(seeds)}, 95 % intervals).",
            decides=[comparisons[key] for key in decides],
            information=[comparisons[key] for key in information or ()],
            charts=[_coloured(chart, colours) for chart in drawn] if colours else drawn,
            tables=[table(evidence) for table in tables],
            figures=text["figures"],
            holds=text["holds"],
            practice=text["practice"],
        )

    questions = " ".join(endpoint.rule for endpoint in decides.values())
    return Claim(
        topic=topic,
        plan=plan,
        judge=judge,
        decision=f"{questions} {rule}.",
        source_setup=source_setup,
        at_scale=tuple(at_scale),
        **fields,
    )


def _check_names(what: str, template: str, known: Set[str]) -> None:
    """Raise if a template names something else than endpoints and words."""
    if unknown := set(names_in(template)) - known:
        raise OptionError(
            message(
                f"names of endpoints or of `say` in the {what}",
                ", ".join(sorted(unknown)),
                f"use {', '.join(sorted(known))}",
            )
        )


def _coloured(chart: Chart, colours: Mapping[str, str]) -> Chart:
    return dataclasses.replace(
        chart,
        lines=tuple(
            dataclasses.replace(line, arm=colours.get(line.arm, line.arm)) for line in chart.lines
        ),
    )
