"""The rows of the op table, a file per family."""
