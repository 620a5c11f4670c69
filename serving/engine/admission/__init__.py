"""Admission control: API keys, limits, deadlines, fairness between clients, overload."""
