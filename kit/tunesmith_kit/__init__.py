"""What every server process of Tunesmith shares."""
