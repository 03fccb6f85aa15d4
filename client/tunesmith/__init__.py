"""Fine-tune language models on a fleet of your own machines."""
