"""Plans of the scheduler, checked by other code than the scheduler's: slow, plain, on its own."""
