"""Evaluations: the outputs of evaluation jobs, verified, scored, compared and browsed."""
