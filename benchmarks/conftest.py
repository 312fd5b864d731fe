"""The fixtures and options are in timing.py, whose types can be checked beside those of tests/."""

pytest_plugins = ["timing"]
