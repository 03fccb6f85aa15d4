"""The agent: one a node. It hears commands, runs trainers and reports; it never imports torch."""
