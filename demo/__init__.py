"""The search app: ``service`` knows models, ``ui`` knows widgets; neither trains."""
