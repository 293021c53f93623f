"""The command line: `litlm COMMAND`; see `main.py`."""
