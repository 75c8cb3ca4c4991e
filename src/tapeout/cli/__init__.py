"""The `tapeout` command: one file a verb, each light to import; see `tapeout.cli.main`."""
