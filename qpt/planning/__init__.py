"""What of a pre-training run fits a GPU: ``qpt.planning.search.plan``, behind ``qpt plan``."""
