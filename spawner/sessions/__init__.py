"""Session and kernel state machines, the ledger, and the reconciler that carries plans out."""
