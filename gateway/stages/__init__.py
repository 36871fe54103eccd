"""The data plane, one file for each phase of a request; `gateway/pipeline.py` has them in order.

A stage is `async def stage(x, *, deps, call_next)`. It reads what earlier stages set on the exchange, sets its own,
and awaits `call_next(x)` where its turn is. Stages do not import each other.
"""
