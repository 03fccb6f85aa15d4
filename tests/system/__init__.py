"""Whole jobs through the public doors of a real platform, in one process and in many."""
