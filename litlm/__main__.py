"""`python -m litlm`: the same as the command `litlm`."""

from litlm.cli.main import main

if __name__ == "__main__":
    main()
