"""The registry: datasets, base models, models and their versions, and the content they are made of."""
