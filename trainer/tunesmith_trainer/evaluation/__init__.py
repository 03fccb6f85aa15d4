"""Evaluation: targets answer rows, scorers judge the answers, and every row judged is on the disk."""
