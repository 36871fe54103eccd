"""Which offer serves a request, what a failure means for the next try, and what is remembered of both.

Pure but for one registry of counters (`health`): no sockets, no tasks, no clock of its own. `stages/admit.py` and
`stages/route.py` are its callers.
"""
