"""Figures of speed and size. They are printed, never asserted: tests must not depend on a machine's mood."""
