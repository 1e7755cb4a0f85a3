"""Accelerator plug-ins against trees of files and a library that stand in for hardware."""
