"""Operators: they check arguments, allocate results and pick a backend; kernels are in csrc/ and kernels/."""
