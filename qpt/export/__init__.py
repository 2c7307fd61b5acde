"""Encoders and scorers written in the formats that other programs read."""
