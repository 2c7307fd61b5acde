"""The peak memory of scoring one file, as the system counts it; tests/test_score_sizes.py runs it in a fresh process.

``python -m tests.memory_score SCORER FILE`` prints {"score", "peak_mib"} as JSON; the peak is beyond what the process
held with the scorer loaded and warmed up on a small image. Relies on Linux (/proc/self/status and clear_refs).
"""

import json
import sys

import numpy as np

from benchmarks.memory import peak_of
from qpt.evaluate.scorer import Scorer

if __name__ == "__main__":
    scorer = Scorer.load(sys.argv[1])
    # Libraries allocate what they keep: the same crops, but of an image of 2 megapixels.
    scorer(np.zeros((1200, 1700, 3), np.uint8))
    score, peak = peak_of(lambda: scorer(sys.argv[2]))
    print(json.dumps({"score": score, "peak_mib": peak / 2**20}))
