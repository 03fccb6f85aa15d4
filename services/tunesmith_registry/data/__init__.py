"""Data of the registry: imports, uploads, prompt templates, statistics, previews, derivations."""
