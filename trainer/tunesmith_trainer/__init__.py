"""The trainer: the one process with torch. It knows its run folder and nothing else (docs/run-folder.md)."""
