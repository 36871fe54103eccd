"""What an adapter is held to, for whoever writes one: golden cases and faults, to be used from a test.

    from gateway.testing import FAULTS, Case, Subject, cases, replay, settle

It needs neither pytest nor a network. `gateway adapter check PACKAGE` runs the same and prints a report. See
`adapters/README.md`.
"""
