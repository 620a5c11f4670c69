"""Metrics on held-out digits: errors, calibration, fidelity, robustness, significance."""
