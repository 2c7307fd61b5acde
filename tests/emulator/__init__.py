"""The block emulator: CUDA source of this project executed on the CPU. See block_emulator.h."""
