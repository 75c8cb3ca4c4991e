"""`python -m tapeout` is the `tapeout` command."""

from tapeout.cli.main import main

main()
