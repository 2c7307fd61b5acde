"""An encoder of two trunks: one as it was before quality-aware pre-training, which knows content, one tuned by it.

Scores of authentic photographs mix quality with content, which pre-training alone makes an encoder forget. The two side
by side keep both, as in Re-IQA (Saha et al., CVPR 2023, arXiv 2304.00451). Made by ``qpt.models.encoder`` from the
checkpoint of a run with ``two_trunks``, and read out like any other encoder.
"""
