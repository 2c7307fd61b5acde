"""The degradations: the op table, the space of compositions, and the programs drawn from it."""
