"""What every command stands on: errors, files, the engine, the command line."""
