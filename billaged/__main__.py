"""``python -m billaged`` is the ``billaged`` command."""

from billaged.cli.main import main

if __name__ == "__main__":
    main()
