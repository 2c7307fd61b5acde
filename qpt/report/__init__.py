"""HTML reports: one self-contained page about one or several runs.

``build`` composes the report of runs behind ``qpt report`` from sections (``training``, ``neighbours``, ``severity``);
``measurements`` computes their values, ``figures`` and ``curves`` draw them, ``page`` writes the HTML.
"""
