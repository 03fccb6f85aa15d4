"""What governs models: stages, gates, cards, lineage, proof, search, export, and what may be deleted."""
