"""One module per subcommand of ``qpt``; the list is ``qpt.cli.COMMANDS``."""
