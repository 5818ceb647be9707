"""The parts of scripts/study.py: one study a module."""
