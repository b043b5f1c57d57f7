"""`python -m mmjax`, the same as the console script."""

from mmjax.cli import main

if __name__ == "__main__":
    main()
