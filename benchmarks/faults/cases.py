"""All cases: faults of the model, of the training, and of the data."""

from __future__ import annotations

from faults import data_cases, model_cases, training_cases
from faults.plan import Case

__all__ = ["CASES"]

CASES: tuple[Case, ...] = (*model_cases.CASES, *training_cases.CASES, *data_cases.CASES)
