"""Triton kernels of QPT, imported as `qpt.kernels`. They rely on torch and triton and on nothing else of qpt.

Each module holds kernels and their launchers; a launcher gets checked tensors, allocates its results and checks
nothing. Callers are in qpt/ops/ and import a module at first use, so that `import qpt` needs no Triton.
"""
