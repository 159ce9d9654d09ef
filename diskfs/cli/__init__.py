"""The command line: one module for each command. Nothing slow is imported before a command needs it."""
