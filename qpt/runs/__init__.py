"""The files of a run directory: their names and formats, written by pre-training and read by reports."""
