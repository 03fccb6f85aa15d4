"""Talking to models: which node answers, and how its answer reaches the caller.

`service` is the rpc, `answers` one answer on its way, `hosts` what the nodes say they could do. Nothing is
stored: whoever goes away takes the answer along.
"""
