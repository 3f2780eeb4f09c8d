"""The dry run's memory is near the measured peak of the run that it plans: one width of a recipe, the benchmark has
more."""

from __future__ import annotations

import pytest

from benchmarks.speed.memory_plan import CASES, Case, measure


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[1::2], ids=lambda case: f"{case.recipe}-{case.width}")
def test_the_plan_is_within_a_fifth_of_the_measured_peak(case: Case):
    found = measure(case)
    assert found.measured > 100
    assert found.estimated == pytest.approx(found.measured, rel=0.2)
