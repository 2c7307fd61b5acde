"""Experiments: encoders are pre-trained and evaluated on tables of opinion scores; records lie in ``results/``.

Run as ``python -m experiments NAME``. Not part of the wheel: only the public API of ``qpt``, ``qpt.evaluate`` and
``benchmarks.harness`` (records, environment, tables) are used.
"""
