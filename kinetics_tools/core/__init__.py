"""Shared by all commands: errors, files, HTTP, the engine, the command line."""
