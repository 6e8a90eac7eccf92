"""Real runs, kept as numbers, on which the rule that gives verdicts is tried."""
