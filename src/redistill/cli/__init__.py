"""The command line `redistill`: its arguments, commands and output."""
