"""Reports: one self-contained HTML page about one or several runs.

``page`` writes any page (the demonstration's too), ``figures`` draws, ``measurements`` computes, ``build`` puts a
report of runs together. ``qpt report`` is the command.
"""
