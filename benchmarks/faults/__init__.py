"""Small real trainings with one normalization fault each, and a healthy twin of every one.

Needs PyTorch and numpy only. ``benchmarks/`` has to be on the path:

    from faults import CASES

    for case in CASES:
        for plan in (case.healthy, case.faulty):
            training = plan.train()
            ...  # ask a tool about training.model, .optimizer, .train_batches, .evaluation_batches
"""

from faults.cases import CASES
from faults.plan import Case, Plan, Training

__all__ = ["CASES", "Case", "Plan", "Training"]
