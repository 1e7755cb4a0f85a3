"""Pure scheduling decisions: a snapshot in, a plan out. No I/O, no clock, no database."""
