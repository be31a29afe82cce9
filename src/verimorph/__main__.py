"""``python -m verimorph`` is the ``verimorph`` command."""

from verimorph.cli import main

if __name__ == "__main__":
    main()
