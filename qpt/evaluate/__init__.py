"""Evaluation and use of encoders: score tables, features, the protocol, results, scorers, the probe."""
