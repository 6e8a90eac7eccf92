"""Doctor: examine a model's normalization, say what mending it brings, and mend it."""

from normkit.doctor.diagnose import diagnose
from normkit.doctor.diagnosis import Diagnosis
from normkit.doctor.finding import Finding, Gain

__all__ = ["Diagnosis", "Finding", "Gain", "diagnose"]
