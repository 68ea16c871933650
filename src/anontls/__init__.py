"""Exchange's certificate selection for mail transport: decided, explained step by step, and done for real."""

__all__ = ["__version__"]

__version__ = "0.1.0"
