"""The rows of the op table, one file per family. Read through ``qpt.degradations``, which joins them."""
