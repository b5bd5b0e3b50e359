"""`python -m bequest`, and `torchrun -m bequest`."""

from .cli import main

if __name__ == "__main__":
    main()
