"""The rule that gives verdicts, itself put to the test: how often is it wrong, how often right?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from normkit.errors import OptionError
from normkit.lab import sample_size
from normkit.lab.claims.c01 import CLAIM as C1
from normkit.lab.claims.c05 import CLAIM as C5
from normkit.lab.claims.claim import Claim, Evidence
from normkit.lab.conditions import named
from normkit.lab.config import RunConfig
from normkit.lab.findings import Comparison, Family, PartWord
from normkit.lab.sample_size import seeds_needed
from normkit.lab.spreads import spread_ratios
from normkit.lab.verdicts import corrected, decide, interval, paired_test

SIMULATIONS = 4000


def word(found: Comparison | None) -> str:
    """The word by the interval alone, which is that of a claim of one part."""
    return found.word if found else "open"


def share_confirmed(
    draw: Callable[[np.random.Generator], Sequence[float]],
    *,
    smallest: float = 0.0,
    resolution: float = 0.0,
) -> float:
    rng = np.random.default_rng(20_150_211)
    words = [
        word(paired_test("?", draw(rng), unit="", smallest=smallest, resolution=resolution))
        for _ in range(SIMULATIONS)
    ]
    return words.count("confirmed") / SIMULATIONS


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_equal_arms_are_confirmed_at_most_one_time_in_twenty(seeds: int) -> None:
    share = share_confirmed(lambda rng: rng.normal(size=seeds) - rng.normal(size=seeds))
    assert share <= 0.05
    # It is 1 in 40 by design; a rule that never says yes would pass the line above too.
    assert share == pytest.approx(0.025, abs=0.008)


@pytest.mark.parametrize(
    "noise",
    [
        lambda rng: stats.t.rvs(3, size=5, random_state=rng),  # heavy tails
        lambda rng: np.where(rng.random(5) < 0.2, -5.0, 0.0) + rng.normal(size=5) * 0.1,
        lambda rng: np.round(rng.normal(size=5), 1),
    ],
    ids=["heavy tails", "now and then a broken run", "rounded"],
)
def test_equal_arms_with_unkind_noise(noise: Callable[[np.random.Generator], np.ndarray]) -> None:
    assert share_confirmed(lambda rng: noise(rng) - noise(rng)) <= 0.05


def test_equal_arms_read_on_a_coarse_grid() -> None:
    # Half of these differences are 0; without the grid's own variance, five equal
    # differences would make an interval of width 0.
    def draw(rng: np.random.Generator) -> Sequence[float]:
        return list(rng.choice([-1 / 3, 0.0, 1 / 3], size=5, p=[0.25, 0.5, 0.25]))

    assert share_confirmed(draw, smallest=0.1, resolution=1 / 3) <= 0.05


@pytest.mark.parametrize(("effect", "least"), [(2.0, 0.9), (3.0, 0.99)])
def test_a_real_difference_is_found(effect: float, least: float) -> None:
    assert share_confirmed(lambda rng: effect + rng.normal(size=5)) >= least


def simulate(
    claim: Claim,
    synthetic: Callable[..., Evidence],
    gain: float,
    simulations: int,
) -> list[str]:
    """Whole claims, judged by their own function, on accuracies and losses drawn at random."""
    rng = np.random.default_rng(7)
    words = []
    for _ in range(simulations):
        by_seed = rng.normal(0.8, 0.01, size=5)

        def values(
            arm: str, config: RunConfig, by_seed: np.ndarray = by_seed
        ) -> Mapping[str, Sequence[float | None]]:
            shift = gain if arm == "with BN" else 0.0
            accuracy = by_seed[config.seed] + shift + rng.normal(0, 0.01, size=config.epochs)
            rounded = [round(float(each), 4) for each in accuracy]
            under = {named("test_accuracy", each): rounded for each in config.evaluations}
            return under | {
                "test_accuracy": rounded,
                "epoch_train_loss": [float(1 - each) for each in accuracy],
            }

        words.append(decide(claim.judge(synthetic(claim, values)).decides)[0])
    return words


@pytest.mark.parametrize("claim", [C1, C5], ids=["C1", "C5"])
def test_whole_claims_on_equal_arms(claim: Claim, synthetic: Callable[..., Evidence]) -> None:
    words = simulate(claim, synthetic, gain=0.0, simulations=800)
    assert words.count("confirmed") / len(words) <= 0.05


@pytest.mark.parametrize("claim", [C1, C5], ids=["C1", "C5"])
def test_whole_claims_on_a_real_difference(
    claim: Claim, synthetic: Callable[..., Evidence]
) -> None:
    words = simulate(claim, synthetic, gain=0.1, simulations=50)
    assert words.count("confirmed") / len(words) >= 0.9


def test_interval_is_scipys() -> None:
    sample = [0.1, 0.4, 0.2, 0.35]
    mean, low, high = interval(sample)
    expected = stats.ttest_1samp(sample, 0).confidence_interval(0.95)
    assert mean == pytest.approx(np.mean(sample), abs=1e-15)
    assert (low, high) == pytest.approx(tuple(expected), abs=1e-12)


def test_resolution_keeps_equal_readings_from_certainty() -> None:
    _, low, high = interval([0.3] * 5, resolution=0.3)
    half = float(stats.t.ppf(0.975, 4)) * 0.3 / math.sqrt(6 * 5)
    assert high - low == pytest.approx(2 * half)


SMALL = "too small to matter"


@pytest.mark.parametrize(
    ("differences", "smallest", "margin", "word"),
    [
        ([0.02, 0.021, 0.019], 0.005, 0, "confirmed"),
        ([-0.02, -0.021, -0.019], 0.0, 0, "opposite"),
        ([-0.02, -0.021, -0.019], 0.005, 0, "opposite"),
        ([0.0020, 0.0021, 0.0019], 0.005, 0, SMALL),  # surely there, surely too small
        ([-0.0020, -0.0021, -0.0019], 0.005, 0, SMALL),
        ([0.02, -0.02, 0.01], 0.005, 0, "open"),
        ([0.0040, 0.0055, 0.0042], 0.005, 0, "open"),  # above zero; may or may not matter
        ([0.0, 0.0, 0.0], 0.0, 0, "open"),
        ([0.0, 0.0, 0.0], 0.1, 0, SMALL),
        ([-0.3, -0.31, -0.29], 0.0, 1, "confirmed"),  # loses less than the margin
        ([-1.3, -1.31, -1.29], 0.0, 1, "opposite"),
        ([-1.3, -0.31, -0.9], 0.0, 1, "open"),
    ],
)
def test_words(differences: list[float], smallest: float, margin: float, word: str) -> None:
    found = paired_test("?", differences, unit="", smallest=smallest, margin=margin)
    assert found is not None
    assert found.word == word
    assert found.seeds == len(differences)


sizes = st.floats(0, 100, allow_subnormal=False)
values = st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=2, max_size=8)


@given(values, sizes, st.one_of(st.just(0.0), sizes), sizes)
@settings(max_examples=300, deadline=None)
def test_every_part_has_one_word(
    differences: list[float], smallest: float, margin: float, shared: float
) -> None:
    part = paired_test("?", differences, unit="", smallest=smallest, margin=margin, shared=shared)
    assert part is not None
    assert part.low <= part.effect <= part.high
    small = not margin and -smallest < part.low and part.high < smallest
    confirmed = part.low > -margin and (part.effect >= smallest or margin > 0)
    opposite = part.high < -margin
    # What is confirmed is neither opposite nor too small; below zero and too small is too small.
    assert confirmed + opposite <= 1
    assert confirmed + small <= 1
    holds = {SMALL: small, "confirmed": confirmed, "opposite": opposite and not small}
    assert [word for word, held in holds.items() if held] == [part.word] or (
        part.word == "open" and not any(holds.values())
    )
    # The other way round, an effect has the other word.
    other = paired_test("?", [-each for each in differences], unit="", smallest=smallest)
    if not margin and not shared and part.word == "confirmed":
        assert other is not None
        assert other.word == "opposite"


parts = st.lists(st.sampled_from([None, *get_args(PartWord)]), max_size=6)


@given(parts)
def test_every_claim_has_one_word(words: list[PartWord | None]) -> None:
    part = Comparison("?", "", 0.0, 0.0, 0.0, 5, "open")
    compared = [word and dataclasses.replace(part, word=word) for word in words]
    verdict, decided = decide(compared)
    assert [each.word for each in decided] == [word for word in words if word]
    assert all(each.decides for each in decided)
    confirmed = words.count("confirmed")
    against = words.count(SMALL) + words.count("opposite")
    assert (verdict == "confirmed") == (0 < confirmed == len(words))
    assert (verdict == "partly") == (0 < confirmed < len(words))
    assert (verdict == "refuted") == (not confirmed and against > 0)
    assert (verdict == "open") == (not confirmed and not against)


def test_one_seed_decides_nothing() -> None:
    assert paired_test("?", [5.0], unit="") is None
    assert decide([None]) == ("open", [])
    assert decide([]) == ("open", [])


def test_what_is_confirmed_by_chance_seldom_survives_many_parts() -> None:
    rng = np.random.default_rng(6)
    chance = {"by its interval": 0, "together": 0}
    simulations = 1500
    for _ in range(simulations):
        # Four questions, the answer to each of which is no: the effect is zero.
        tests = [paired_test("?", rng.normal(size=5), unit="") for _ in range(4)]
        parts = [part for part in tests if part]
        chance["by its interval"] += any(part.word == "confirmed" for part in parts)
        chance["together"] += any(corrected(parts))
    assert 0.012 <= chance["together"] / simulations <= 0.035  # 0.025 by design
    assert chance["by its interval"] / simulations == pytest.approx(
        Family(4, 0, 0).chance, abs=0.025
    )


def test_a_constant_is_no_matter_of_chance() -> None:
    constant = paired_test("?", [3.0, 3.0, 3.0], unit="", smallest=1)
    weak = paired_test("?", [1.0, 1.5, 0.7], unit="")
    assert constant is not None
    assert weak is not None
    assert (constant.word, constant.p, weak.word) == ("confirmed", None, "confirmed")
    assert corrected([constant, weak]) == [True, corrected([weak])[0]]


def test_range_of_seeds_holds_their_number() -> None:
    """In four of five open parts, over effects from none to large and sizes that matter."""
    rng = np.random.default_rng(8)
    held = []
    while len(held) < 150:
        size, smallest = rng.choice([-0.4, 0.3, 0.5, 0.7, 1.0]), rng.choice([0.0, 0.25, 0.6])
        part = paired_test("?", size + rng.normal(size=5), unit="", smallest=smallest)
        assert part is not None
        if part.word == "open":
            (true,) = sample_size.needed(np.array([size]), np.ones(1), part)
            low, high = seeds_needed(part) or (math.inf, None)
            held.append(low <= true <= (high or math.inf))
    assert np.mean(held) >= 0.75


@pytest.mark.parametrize(
    ("effect", "smallest", "margin"),
    [(0.9, 0.0, 0.0), (0.9, 0.5, 0.0), (0.1, 0.5, 0.0), (0.3, 0.0, 0.5), (-1.2, 0.0, 0.5)],
    ids=["above zero", "matters", "too small", "above the margin", "below the margin"],
)
def test_needed_seeds_decide_four_times_in_five(
    effect: float, smallest: float, margin: float
) -> None:
    rng = np.random.default_rng(8)
    sizes: Any = {"unit": "", "smallest": smallest, "margin": margin}
    part = paired_test("?", [0.9, -0.7, 1.4, 0.2, 0.4], **sizes)
    assert part is not None
    (seeds,) = sample_size.needed(np.array([effect]), np.ones(1), part)

    def decided(count: int) -> float:
        tests = (paired_test("?", effect + rng.normal(size=count), **sizes) for _ in range(1000))
        return float(np.mean([test is not None and test.word != "open" for test in tests]))

    assert decided(int(seeds)) == pytest.approx(0.8, abs=0.05)
    assert decided(int(seeds) // 2) < 0.7


def test_no_number_of_seeds_without_spread() -> None:
    nowhere = paired_test("?", [0.0, 0.0, 0.0], unit="")
    assert nowhere is not None
    assert seeds_needed(nowhere) is None


def test_number_of_seeds_that_would_show_an_effect_too_small() -> None:
    """The range goes by the side on which a decision lies near."""
    sample = [0.4, -0.4, 0.3, -0.35, 0.1]
    small, sign = (paired_test("?", sample, unit="", smallest=size) for size in (0.4, 0.0))
    assert small is not None
    assert sign is not None
    assert small.word == sign.word == "open"
    few, many = seeds_needed(small), seeds_needed(sign)
    assert few is not None
    assert few[1] is not None
    assert many is None or many[1] is None


@pytest.mark.parametrize("seeds", [5, 50])
def test_an_error_that_all_seeds_share_does_not_average_out(seeds: int) -> None:
    def share(shared: float, effect: float = 0.0) -> float:
        rng = np.random.default_rng(44)
        words = [
            word(paired_test("?", effect + rng.normal(0, 1) + noise, unit="", shared=shared))
            for noise in rng.normal(0, 1, (2000, seeds))
        ]
        return words.count("confirmed") / len(words)

    assert share(0.0) > 0.1  # what a t interval of the seeds alone makes of it
    assert share(1.0) == pytest.approx(0.025, abs=0.013)
    assert share(1.0, effect=5.0) > 0.8


def test_values_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(OptionError, match="finite"):
        interval([0.1, float("nan")])
    with pytest.raises(OptionError, match="0 or more"):
        paired_test("?", [1.0, 2.0], unit="", smallest=-1)


def accuracies(rng: np.random.Generator, tail: float, alike: float, ratio: float) -> np.ndarray:
    """Ten pairs: one with a tail to the left (shape of a gamma; 0 for none), one normal.

    Both have standard deviation 1, times ``ratio`` for the first; ``alike`` is how much they go
    together.
    """
    normal = rng.multivariate_normal([0, 0], [[1, alike], [alike, 1]], size=10).T
    if tail:
        shape = stats.norm.cdf(-normal[0])
        normal[0] = -(stats.gamma.ppf(shape, tail) - tail) / math.sqrt(tail)
    normal[0] *= ratio
    return normal


@pytest.mark.parametrize(("tail", "alike"), [(0.0, 0.5), (2.0, 0.0), (0.7, 0.5)])
def test_equal_spreads_are_confirmed_at_most_one_time_in_twenty(tail: float, alike: float) -> None:
    share = share_confirmed(lambda rng: spread_ratios(*accuracies(rng, tail, alike, 1.0)))
    assert 0.01 <= share <= 0.05  # 0.025 by design


def test_a_real_difference_of_spreads_is_found_and_measured() -> None:
    share = share_confirmed(lambda rng: spread_ratios(*accuracies(rng, 2.0, 0.3, 8.0)), smallest=1)
    assert share >= 0.9
    rng = np.random.default_rng(3)
    estimates = [np.mean(spread_ratios(*accuracies(rng, 0.0, 0.3, 8.0))) for _ in range(2000)]
    assert np.mean(estimates) == pytest.approx(3.0, abs=0.03)  # 8 is three halvings


def test_spread_does_not_depend_on_level_or_scale() -> None:
    rng = np.random.default_rng(4)
    first, second = accuracies(rng, 0.0, 0.3, 2.0)
    once = spread_ratios(first, second)
    assert spread_ratios(5 + 3 * first, 3 * second - 7) == pytest.approx(once)
    assert spread_ratios(second, first) == pytest.approx([-value for value in once])


def test_equal_readings_spread_as_much_as_their_resolution() -> None:
    # Of four readings that are all the same, rounding alone says how far they may be apart.
    values = spread_ratios([0.0, 1.0, 2.0, 3.0], [0.5] * 4, resolution=0.1)
    assert all(math.isfinite(value) for value in values)
    assert np.mean(values) == pytest.approx(
        math.log2(math.sqrt(5 / 3) / (0.1 / math.sqrt(12))), abs=0.3
    )
    assert spread_ratios([0.5] * 4, [0.5] * 4, resolution=0.1) == [0.0] * 4


def test_two_pairs_have_no_ratio_of_spreads() -> None:
    assert spread_ratios([1.0, 2.0], [1.0, 3.0]) == []
    assert paired_test("?", spread_ratios([1.0, 2.0], [1.0, 3.0]), unit="") is None


def test_more_seeds_do_not_decide_what_all_share() -> None:
    sample = [0.9, -0.1, 1.4, 0.2, 0.4]
    alone, little, much = (
        paired_test("?", sample, unit="", shared=shared) for shared in (0.0, 0.25, 1.0)
    )
    assert alone is not None
    assert little is not None
    assert much is not None
    assert alone.effect == little.effect == much.effect
    assert alone.p is not None
    assert little.p is not None
    assert much.p is not None
    assert alone.p <= little.p < much.p
    few, more = seeds_needed(alone), seeds_needed(little)
    assert few is not None
    assert more is not None
    assert few[0] <= more[0]
    assert seeds_needed(much) is None
