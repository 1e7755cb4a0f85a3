"""Monitors: plug-ins that get the metrics of a process, or the errors that it logs."""
