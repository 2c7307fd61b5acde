"""Images: finding, decoding, cutting and normalising them, and readers of score files."""
