"""`python -m keepline` is `keepline`."""

from keepline.cli import main

if __name__ == "__main__":
    main()
