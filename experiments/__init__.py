"""Single-file recipes: `python -m experiments.NAME`, each read from top to bottom; not imported by the package."""
