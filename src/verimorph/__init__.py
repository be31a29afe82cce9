"""Medical image registration that says how sure it is."""

__version__ = "0.1.0.dev0"
