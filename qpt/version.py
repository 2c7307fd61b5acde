"""The version of QPT, written once: read by pyproject.toml (without importing the package), qpt and
qpt.commands.doctor."""

__version__ = "0.1.0"
