"""`python -m cirbench` is the command `cirbench`: for launchers that start modules."""

from cirbench.cli import main

if __name__ == "__main__":
    main()
