"""`python -m beadwork`: the command line, where the script `beadwork` is not on the path."""

from beadwork.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
