"""What both planes share: keys, offers, limits, the ledger. Knows nothing of HTTP."""
