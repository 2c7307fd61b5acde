"""Memory plans: the batch, chunk and pool of a pre-training run that fit a GPU (``qpt plan``)."""
