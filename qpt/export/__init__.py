"""Export of encoders and scorers to formats that other programs read, with a model card."""
