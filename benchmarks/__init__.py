"""Benchmarks of QPT, run as ``python -m benchmarks NAME``; records are JSON files in ``benchmarks/results/``.

``harness.py`` times, ``roofline.py`` predicts, ``resources.py`` reads compiled kernels: one of each for all.
"""
