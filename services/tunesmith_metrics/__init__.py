"""The metrics service: keeps the curves and logs of jobs and answers for them."""
