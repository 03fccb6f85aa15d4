"""Alerts: rules over what is stored, judged by the time of the data, and who is told.

conditions.py   what a rule looks for, sample by sample
machine.py      pending, firing, resolved: one rule over one job or node
reading.py      what was stored after a revision, as samples in order
engine.py       the loop: read, judge, and write down what was found together with how far it got
replay.py       one rule over stored history
notices.py      who is told, and the tries
"""
