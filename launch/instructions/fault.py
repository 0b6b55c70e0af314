"""What makes a row of instruction data unusable."""


class Fault(Exception):
    """What is wrong with a row; the text follows `row N: `."""
