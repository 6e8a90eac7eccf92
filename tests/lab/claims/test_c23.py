"""C23: its records and its table tell PSNR; a small edition will do."""

from __future__ import annotations

from statistics import fmean, stdev

from normkit.lab.claims.c23 import BN, CLAIM, HALF, NONE, PSNR
from normkit.lab.claims.claim import Available
from normkit.lab.judge import finding
from tests.lab.claims.invented import evidence


def test_records_and_table_tell_psnr() -> None:
    runs = evidence(CLAIM, "quick")
    found = finding(CLAIM, runs, data="invented")
    assert dict(found.setup)["task"] == "denoising, noise 0.1"
    rows = {row[0]: row for row in found.tables[0].rows}
    last = [value for run in runs.of(HALF) if (value := PSNR.read(run)) is not None]
    assert rows[HALF][1:4] == (5, round(fmean(last), 2), round(stdev(last), 3))
    # The noisy image: 10 log10(1 / 0.1²).
    assert rows["the noisy image, not clipped"][2] == 20


def test_only_bn_is_tested_with_population_statistics() -> None:
    runs = dict(CLAIM.plan("full", Available("subset", 200, 100)))
    assert (runs[BN].train_images, runs[BN].test_images) == (200, 100)
    assert runs[BN].final_evaluations == (("population", 200, 200),)
    assert runs[NONE].final_evaluations == runs[HALF].final_evaluations == ()


def test_paper_has_as_many_steps_as_the_source() -> None:
    config = CLAIM.plan("paper", Available("full", 60_000, 10_000))[0][1]
    assert abs(config.steps / 400_000 - 1) < 0.01
