"""The quality-aware contrastive loss, its negative pool and its backends."""
