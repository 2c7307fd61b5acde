"""Pre-training: ``config`` (settings), ``engine`` (the loop), ``learner`` (one step), ``checkpoint`` and ``log``."""
