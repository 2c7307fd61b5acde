"""The block emulator, which runs the CUDA source of this project on the CPU. See block_emulator.h."""
