"""The parts of scripts.studies: one study a module."""
