"""State dicts merged: what they hold, checks, rules, and statistics as moments."""
