"""The version, where a module below the package's face can read it."""

__version__ = "0.2.0"
