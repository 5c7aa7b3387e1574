"""``python -m warmstart.cli``."""

from warmstart.cli import main

if __name__ == "__main__":
    main()
