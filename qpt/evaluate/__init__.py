"""Evaluation and use of encoders: tables of scores, features, the protocol, results, scorers."""
